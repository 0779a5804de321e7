"""Methods beside AdaLoRA and AFLoRA, in lock-step with their literal twins."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.allocation.cosine import cosine
from rankwise.allocation.gram import grams
from reference.adalora import AdaLoRATwin, Triplets
from reference.aflora import AFLoRATwin
from reference.pruned_lora import PrunedLoRATwin
from reference.sora import soft_threshold, threshold
from sampled import some
from toy import loss_of, mlp, stream

STEPS = 160
SCHEDULE = {"warmup": 20, "cooldown": 50, "every": 3}
LR = 1e-2


class Told:
    """What a step did: gradients as the task gave them, as the optimizer got them, and weights as it left them."""

    def __init__(self, adaptation: rw.Adaptation, names: tuple[str, ...]) -> None:
        self.adaptation, self.names = adaptation, names
        self.optimizer = torch.optim.AdamW(adaptation.parameters(), lr=LR, weight_decay=0.01)
        self.optimizer.register_step_post_hook(self._note)  # before the engine's hooks: nothing is masked yet

    def _note(self, *_: Any) -> None:
        self.after = self.weights()

    def weights(self) -> list[Any]:
        return [tuple(a.get_parameter(n).detach().clone() for n in self.names) for a in self._layers()]

    def gradients(self) -> list[Any]:
        parameters = [[a.get_parameter(n) for n in self.names] for a in self._layers()]
        return [tuple(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in ps) for ps in parameters]

    def _layers(self) -> Any:
        return self.adaptation.adapters.values()

    def step(self, example: Any) -> None:
        loss_of(self.adaptation.model, example).backward()
        self.before, self.task = self.weights(), self.gradients()
        self.optimizer.step()
        self.given = self.gradients()
        self.optimizer.zero_grad()


def masks(adaptation: rw.Adaptation) -> list[list[bool]]:
    return [a.live.tolist() for a in adaptation.adapters.values()]


# ------------------------------------------------------------------ pruned LoRA, and budgets in parameters


@pytest.mark.parametrize("seed", some([0, 1]))
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"target_rank": 2}, {"target": 6}),
        ({"mask": "hold", "budget": 7}, {"mask": "hold", "target": 7}),
        ({"budget": "0.15k"}, {"size": 150}),
        ({"budget": "640B"}, {"size": 160}),
    ],
    ids=["release", "hold", "parameters", "bytes"],
)
def test_pruned_lora_is_its_twin(seed: int, ours: dict[str, Any], theirs: dict[str, Any]):
    adaptation = rw.adapt(mlp(seed), rw.PrunedLoRA(rank=5, **{"target_rank": 2, **SCHEDULE, **ours}))
    told = Told(adaptation, ("B", "A"))
    twin = PrunedLoRATwin(told.weights(), total=STEPS, **SCHEDULE, **theirs)
    with adaptation.attached(told.optimizer, total_steps=STEPS):
        for t, example in enumerate(stream(STEPS, seed)):
            told.step(example)
            expected = twin.step(t, told.given, told.after)
            assert masks(adaptation) == [mask.tolist() for mask in twin.masks], t
            for one, other in zip(told.weights(), expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), t
            if twin.sized and t > 20 and t % 3 == 0:  # handed out at this step
                spent = sum(c * int(m.sum()) for c, m in zip(twin.costs, twin.masks, strict=True))
                assert 0 <= twin.budget - spent < max(twin.costs), t
    allocated = [line["budget"] for line in adaptation.history.lines if line["event"] == "allocated"]
    assert allocated == sorted(allocated, reverse=True) and allocated[-1] == twin.end


def test_two_methods_at_the_same_size():
    """Both stay below the same number of parameters, by less than one rank."""
    sizes = {}
    for method in (rw.AdaLoRA, rw.PrunedLoRA):
        adaptation = rw.adapt(mlp(), method(rank=6, budget="0.2k", **SCHEDULE))
        told = Told(adaptation, ())
        with adaptation.attached(told.optimizer, total_steps=STEPS):
            for example in stream(STEPS):
                told.step(example)
        sizes[method.name] = adaptation.count()
        adaptation.compact()
        assert adaptation.count() == sizes[method.name] == sum(p.numel() for p in adaptation.parameters())
    assert all(200 - (12 + 16 + 1) < size <= 200 for size in sizes.values()), sizes


@pytest.mark.parametrize(
    ("optimizer", "reset", "returns"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), False, False),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), False, True),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), True, False),
        (lambda p: torch.optim.AdamW(p, lr=1e-2), False, True),
        (lambda p: torch.optim.AdamW(p, lr=1e-2), True, False),
    ],
    ids=["sgd", "momentum", "momentum-reset", "adamw", "adamw-reset"],
)
def test_a_pruned_doublet_returns_only_by_a_momentum(optimizer: Any, reset: bool, returns: bool):
    method = rw.PrunedLoRA(rank=5, target_rank=2, **SCHEDULE, reset_moments_on_prune=reset)
    adaptation = rw.adapt(mlp(), method)
    stepper = optimizer(adaptation.parameters())
    returned, dropped = 0, [~a.live for a in adaptation.adapters.values()]
    with adaptation.attached(stepper, total_steps=STEPS):
        for example in stream(STEPS):
            loss_of(adaptation.model, example).backward()
            stepper.step()
            stepper.zero_grad()
            for adapter, gone in zip(adaptation.adapters.values(), dropped, strict=True):
                alive = adapter.B.any(dim=0) | adapter.A.any(dim=1)
                returned += int((alive & gone).sum())
            dropped = [~a.live for a in adaptation.adapters.values()]
    assert (returned > 0) == returns
    assert sum(adaptation.ranks().values()) == 6


# ------------------------------------------------------------------ SoRA


@pytest.mark.parametrize("stages", [1, 7])
def test_sora_is_its_twin(stages: int):
    top = 0.02
    adaptation = rw.adapt(mlp(), rw.SoRA(rank=5, threshold=top, stages=stages))
    told = Told(adaptation, ("g",))
    thresholds = []
    with adaptation.attached(told.optimizer, total_steps=STEPS):
        for t, example in enumerate(stream(STEPS)):
            told.step(example)
            thresholds.append(threshold(t, STEPS, stages, top))
            for (after,), (now,), adapter in zip(told.after, told.weights(), adaptation.adapters.values(), strict=True):
                expected = [soft_threshold(g, thresholds[-1]) for g in after.tolist()]
                torch.testing.assert_close(now, torch.tensor(expected), rtol=1e-6, atol=1e-8)
                assert adapter.live.tolist() == [g != 0 for g in expected], t
    assert 0 < sum(adaptation.ranks().values()) < 15
    closed = [line for line in adaptation.history.lines if line["event"] == "closed"]
    assert [line["threshold"] for line in closed] == pytest.approx(thresholds)
    assert closed[-1]["live"] == sum(adaptation.ranks().values())
    outputs = adaptation.model(torch.ones(2, 10))
    assert adaptation.compact() == 0
    torch.testing.assert_close(adaptation.model(torch.ones(2, 10)), outputs)


@pytest.mark.parametrize(("g", "left"), [(1.9, 0.9), (1.0, 0.0), (-1.0, 0.0), (-2.5, -1.5), (0.4, 0.0)])
def test_the_threshold_is_soft(g: float, left: float):
    """Where the published code gives 0 for 1.9 ξ, and ξ for ξ."""
    assert soft_threshold(g, 1.0) == pytest.approx(left)
    adaptation = rw.adapt(mlp(), rw.SoRA(rank=1, threshold=1.0))
    adapter = next(iter(adaptation.adapters.values()))
    nn.init.constant_(adapter.g, g)
    adapter.g.grad = torch.zeros_like(adapter.g)
    still = torch.optim.SGD(adaptation.parameters(), lr=0.0)
    with adaptation.attached(still, total_steps=1):
        still.step()
    assert adapter.g.item() == pytest.approx(left)


# ------------------------------------------------------------------ AdaLoRA, then AFLoRA's freezing


class LiveTwin(AFLoRATwin):
    """Scores are means over the ranks that are alive."""

    live: dict[str, Tensor]

    def scores(self) -> dict[str, float]:
        of_live = {}
        for name in self.trainable():
            element = self.element_scores(name)
            ranks = self.live[name.rpartition(".")[0]]
            kept = element[:, ranks] if name.endswith("P") else element[ranks]
            of_live[name] = float(kept.mean())
        return of_live


def by_name(layers: list[str], triplets: list[Any]) -> dict[str, Tensor]:
    return {
        f"{layer}.{t}": w
        for layer, ws in zip(layers, triplets, strict=True)
        for t, w in zip(("P", "lam", "Q"), ws, strict=True)
    }


@pytest.mark.parametrize("seed", some([0, 1, 2]))
def test_budget_then_freezing_is_both_twins(seed: int):
    adaptation = rw.adapt(
        mlp(seed, layers=5),
        rw.FreezingAdaLoRA(rank=4, target_rank=2, **SCHEDULE, freeze_cooldown=12, freeze_every=4),
    )
    told = Told(adaptation, ("P", "lam", "Q"))
    budget = AdaLoRATwin(told.weights(), total=STEPS, **SCHEDULE, target=10)
    projections = {f"{n}.{t}": a.get_parameter(t) for n, a in adaptation.adapters.items() for t in ("P", "Q")}
    freezing = LiveTwin(
        {n: tuple(p.shape) for n, p in projections.items()}, total=STEPS, warmup=110, cooldown=12, every=4
    )
    with adaptation.attached(told.optimizer, total_steps=STEPS):
        for t, example in enumerate(stream(STEPS, seed)):
            told.step(example)
            names = list(adaptation.adapters)
            task, before = by_name(names, told.task), by_name(names, told.before)
            triplets = [[Triplets(*m) for m in x] for x in (told.given, told.before, told.after)]
            budget.step(t, *triplets)
            assert masks(adaptation) == [mask.tolist() for mask in budget.masks], t
            freezing.live = dict(zip(names, budget.masks, strict=True))
            assert set(adaptation.frozen()) == freezing.step(t, before, task), t
            frozen = [projections[n] for n in adaptation.frozen()]
            assert all(p.grad is None and p not in told.optimizer.state and not p.requires_grad for p in frozen)
    steps = sorted({t for t, _ in freezing.events})
    assert len(freezing.events) == 10 and steps[0] > 110 and len(steps) > 2
    assert sum(adaptation.ranks().values()) == 10
    assert adaptation.count() == sum(adaptation.ranks().values())  # of each live triplet its λ


# ------------------------------------------------------------------ penalties


def cosine_of(columns: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Value and gradients, of matrices (d, r)."""
    value, multipliers = cosine(grams([C.T for C in columns]))
    return value, [C @ M for C, M in zip(columns, multipliers, strict=True)]


def test_the_cosine_penalty_is_the_formula_s():
    """Value and gradient by autograd on the formula; a zero vector takes no part."""

    columns = [
        torch.randn(7, 4, dtype=torch.float64),
        torch.randn(5, 4, dtype=torch.float64),
        torch.randn(6, 2).double(),
    ]
    leaves = [c.clone().requires_grad_() for c in columns]
    R = torch.zeros((), dtype=torch.float64)
    for C in leaves:
        r = C.shape[1]
        for i in range(r):
            for j in range(r):
                if i != j:
                    R = R + (C[:, i] @ C[:, j]).abs() / (C[:, i].norm() * C[:, j].norm()) / (r * r - r) / len(leaves)
    value, gradients = cosine_of(columns)
    torch.testing.assert_close(value.double(), R.detach(), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients, torch.autograd.grad(R, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    columns[0][:, 1] = 0
    value, gradients = cosine_of([columns[0], torch.zeros(3, 1, dtype=torch.float64)])
    assert torch.isfinite(gradients[0]).all() and not gradients[0][:, 1].any() and not gradients[1].any()


@pytest.mark.parametrize("frozen", [("P",), ("P", "Q")])
def test_a_mean_penalty_stays_as_it_was_for_those_that_are_left(frozen: tuple[str, ...]):
    def gradient(freeze: tuple[str, ...]) -> Tensor:
        adaptation = rw.adapt(mlp(), rw.SVDLoRA(rank=3, orthogonality=1.0))
        *others, last = adaptation.adapters.values()
        for layer in others:
            for name in freeze:
                layer.freeze(name)
        loss_of(adaptation.model, next(stream(1))).backward()
        before = last.P.grad.clone()
        controller = adaptation.method.controller(adaptation.adapters, 10, None)
        controller.observe(None)
        return last.P.grad - before

    torch.testing.assert_close(gradient(frozen), gradient(()))


@pytest.mark.parametrize("penalty", ["cosine", "mean_norm"])
def test_a_penalty_pulls_lora_s_vectors_apart(penalty: str):
    values = {}
    for weight in (1e-6, 2.0):
        torch.manual_seed(0)
        adaptation = rw.adapt(mlp(), rw.LoRA(rank=4, penalty=penalty, orthogonality=weight))
        told = Told(adaptation, ())
        with adaptation.attached(told.optimizer, total_steps=STEPS):
            for example in stream(STEPS):
                told.step(example)
        values[weight] = float(adaptation.controller.regulariser.value)
    assert values[2.0] < 0.6 * values[1e-6]


@pytest.mark.parametrize("method", [rw.SVDLoRA(rank=3), rw.LoRA(rank=3, penalty="cosine")], ids=lambda m: m.name)
def test_a_penalty_cannot_be_forgotten(method: Any):
    adaptation = rw.adapt(mlp(), method)
    optimizer = torch.optim.AdamW(adaptation.parameters())
    loss_of(adaptation.model, next(stream(1))).backward()
    with pytest.raises(rw.StateError, match="is not attached"):
        optimizer.step()


def test_svd_lora_is_adalora_that_drops_nothing():
    states = []
    for method in (rw.SVDLoRA(rank=4, alpha=8), rw.AdaLoRA(rank=4, target_rank=4, alpha=8)):
        torch.manual_seed(1)
        adaptation = rw.adapt(mlp(), method)
        told = Told(adaptation, ())
        with adaptation.attached(told.optimizer, total_steps=STEPS):
            for example in stream(STEPS):
                told.step(example)
        states.append(adaptation.model.state_dict())
    assert all(torch.equal(t, states[1][n]) for n, t in states[0].items())
