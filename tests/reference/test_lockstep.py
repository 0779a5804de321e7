"""The engine beside the literal twins, step by step.

AdaLoRA twice over. On their own, engine and twin each train by their own forward, backward, penalty and optimizer, in
float64: the un-squared norm has a kink at orthonormality, where training arrives and where two correct float32 runs
part. Led, the twin is handed the engine's own gradients and weights in float32, so every decision must be the same.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import rankwise as rw
from reference.adalora import AdaLoRATwin, Triplets
from reference.aflora import AFLoRATwin
from sampled import some
from toy import loss_of, mlp, step, stream

RANK, TARGET, GAMMA, LR = 6, 3, 0.1, 1e-2


def schedule(steps: int, every: int) -> dict[str, int]:
    return {"warmup": steps // 8, "cooldown": steps // 3, "every": every}


def triplets(adaptation: rw.Adaptation) -> list[Triplets]:
    return [Triplets(a.P, a.lam, a.Q) for a in adaptation.adapters.values()]


def twin_of(adaptation: rw.Adaptation, steps: int, every: int, **options: Any) -> AdaLoRATwin:
    target = TARGET * len(adaptation.adapters)
    settings = {"gamma": GAMMA, "target": target, "total": steps, **schedule(steps, every)}
    return AdaLoRATwin(triplets(adaptation), **settings, **options)


def assert_same_masks(adaptation: rw.Adaptation, twin: AdaLoRATwin, t: int) -> None:
    for adapter, mask in zip(adaptation.adapters.values(), twin.masks, strict=True):
        assert adapter.live.tolist() == mask.tolist(), t
        if twin.masked:
            assert (adapter.lam != 0).tolist() == mask.tolist(), t


def on_their_own(seed: int, steps: int, every: int = 3, **options: Any) -> Iterator[tuple[rw.Adaptation, AdaLoRATwin]]:
    adaptation = rw.adapt(mlp(seed), rw.AdaLoRA(rank=RANK, target_rank=TARGET, **schedule(steps, every), **options))
    adaptation.model.double()
    twin = twin_of(adaptation, steps, every, **options)
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=LR, weight_decay=0.01)
    twin_optimizer = torch.optim.AdamW(twin.parameters(), lr=LR, weight_decay=0.01)
    base = [(a.base.weight, a.base.bias) for a in adaptation.adapters.values()]
    with adaptation.attached(optimizer, total_steps=steps):
        for t, (x, y) in enumerate(stream(steps, seed)):
            x, y = x.double(), y.double()
            step(adaptation, optimizer, (x, y))

            hidden = x
            for k, (W, b) in enumerate(base):
                hidden = (torch.tanh(hidden) if k else hidden) @ (W + twin.delta(k, 1.0)).T + b
            twin.train_step(t, nn.functional.mse_loss(hidden, y), twin_optimizer)

            assert_same_masks(adaptation, twin, t)
            for ours, theirs in zip(triplets(adaptation), twin.matrices, strict=True):
                for letter, a, b in zip("PλQ", ours, theirs, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=f"{letter} at {t}")
        yield adaptation, twin


@pytest.mark.parametrize("seed", some([0, 1, 2]))
def test_adalora_on_its_own_is_its_twin(seed: int):
    for adaptation, twin in on_their_own(seed, steps=320):
        assert sum(int(mask.sum()) for mask in twin.masks) == 9
        assert sorted(adaptation.ranks().values()) != [3, 3, 3]  # something was decided


@pytest.mark.parametrize(
    "options",
    [
        {"score": "sensitivity"},
        {"score": "raw_sensitivity"},
        {"score": "raw_sensitivity", "score_at": "before_step"},
        {"score": "magnitude"},
        {"score": "magnitude", "score_at": "before_step", "mask": "hold"},
        {"score_at": "before_step"},
        {"ties": "drop"},
        {"penalty": "sum_of_squares"},
        {"mask": "hold"},
        {"beta1": 0.5, "beta2": 0.95},
        {"score_at": "before_step", "ties": "drop", "penalty": "sum_of_squares", "mask": "hold"},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_every_option_of_adalora_is_its_twins(options: dict[str, Any]):
    list(on_their_own(0, steps=80, every=7, **options))  # 7 does not divide T - t_f


def led(seed: int, steps: int, every: int, **options: Any) -> None:
    """Ours trains in float32; the twin is told what the optimizer was given and what it left."""
    method = rw.AdaLoRA(rank=RANK, target_rank=TARGET, **schedule(steps, every), **options)
    adaptation = rw.adapt(mlp(seed), method)
    twin = twin_of(adaptation, steps, every, **options)
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=LR, weight_decay=0.01)
    told: list[list[Triplets]] = []

    def tell_weights(*_: Any) -> None:  # registered before the engine's hooks: it runs before they mask anything
        told.append([Triplets(*(w.detach().clone() for w in m)) for m in triplets(adaptation)])

    optimizer.register_step_post_hook(tell_weights)
    with adaptation.attached(optimizer, total_steps=steps):
        for t, example in enumerate(stream(steps, seed)):
            loss_of(adaptation.model, example).backward()
            before = [Triplets(*(w.detach().clone() for w in m)) for m in triplets(adaptation)]
            optimizer.step()
            grads = [Triplets(*(w.grad.clone() for w in m)) for m in triplets(adaptation)]
            optimizer.zero_grad()
            twin.step(t, grads, before, told.pop())
            assert_same_masks(adaptation, twin, t)
            for ours, theirs in zip(triplets(adaptation), twin.matrices, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), t
            importance = adaptation.controller.importance
            for ours, theirs in ((importance.mean, twin.impact_mean), (importance.uncertainty, twin.uncertainty)):
                for a, b in zip(ours, (w for matrix in theirs for w in matrix), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-10, msg=f"importance at {t}")


@pytest.mark.parametrize("seed", some([0, 1, 2]))
@pytest.mark.parametrize("options", [{}, {"score_at": "before_step", "mask": "hold"}], ids=["published", "paper"])
def test_adalora_in_float32_decides_as_its_twin(seed: int, options: dict[str, Any]):
    led(seed, 320, 3, **options)


# ------------------------------------------------------------------ AFLoRA


@pytest.mark.parametrize(
    ("seed", "every", "freeze_rule", "signal"),
    [
        (0, 7, "count", "gradient"),  # 7 does not divide T - t_f
        *((1, 7, rule, "sensitivity") for rule in ("count", "elementwise_quantile")),
        *((2, 10, rule, "relative_gradient") for rule in ("count", "elementwise_quantile")),
        (0, 10, "elementwise_quantile", "gradient"),
        *some([(seed, 10, "count", "gradient") for seed in (0, 1, 2)]),
        *some([(seed, 10, "elementwise_quantile", "gradient") for seed in (1, 2)], kept=()),
    ],
)
def test_aflora_freezes_as_its_twin(seed: int, every: int, freeze_rule: str, signal: str):
    steps = 310
    run = {"warmup": 30, "cooldown": 120, "every": every, "signal": signal, "freeze_rule": freeze_rule}
    adaptation = rw.adapt(mlp(seed, layers=6), rw.AFLoRA(rank=3, scope="all", **run))
    projections = {f"{n}.{m}": a.get_parameter(m) for n, a in adaptation.adapters.items() for m in "AB"}
    assert len(projections) == 12
    twin = AFLoRATwin({n: tuple(p.shape) for n, p in projections.items()}, total=steps, **run)
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=LR)
    with adaptation.attached(optimizer, total_steps=steps):
        for t, example in enumerate(stream(steps, seed)):
            loss_of(adaptation.model, example).backward()
            weights = {n: projections[n].detach().clone() for n in twin.trainable()}
            grads = {n: projections[n].grad.clone() for n in twin.trainable()}
            optimizer.step()
            optimizer.zero_grad()
            assert set(adaptation.frozen()) == twin.step(t, weights, grads), t
    events = [(e["step"], n) for e in adaptation.history.lines if e["event"] == "froze" for n in e["frozen"]]
    assert sorted(events) == sorted(twin.events) and len(events) == 12
    assert len({t for t, _ in events}) > 1
