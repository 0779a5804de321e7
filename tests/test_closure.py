"""A step with a closure decides and trains as one without."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from toy import loss_of, mlp, step, stream

TOTAL = 12
METHODS = {
    "lora": rw.LoRA(rank=2),
    "adalora": rw.AdaLoRA(rank=4, target_rank=2, warmup=2, cooldown=4, every=1),
    "adalora-before": rw.AdaLoRA(rank=4, target_rank=2, warmup=2, cooldown=4, every=1, score_at="before_step"),
    "aflora": rw.AFLoRA(rank=4, scope="all", warmup=2, cooldown=4, every=1),
}


def adapted(method: rw.LoRA, rate: float = 1e-2) -> tuple[rw.Adaptation, torch.optim.Optimizer]:
    adaptation = rw.adapt(mlp(), method)
    return adaptation, torch.optim.AdamW(adaptation.parameters(), lr=rate)


def closure_of(adaptation: rw.Adaptation, optimizer: torch.optim.Optimizer, example) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(adaptation.model, example)
        loss.backward()
        return loss

    return closure


def state(adaptation: rw.Adaptation) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in adaptation.model.state_dict().items()}


@pytest.mark.parametrize("by_name", [False, True], ids=["positional", "named"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_closure_changes_nothing(method, by_name: bool):
    plain, optimizer = adapted(method)
    with plain.attached(optimizer, total_steps=TOTAL):
        for example in stream(TOTAL):
            step(plain, optimizer, example)

    adaptation, optimizer = adapted(method)
    with adaptation.attached(optimizer, total_steps=TOTAL):
        for example in stream(TOTAL):
            closure = closure_of(adaptation, optimizer, example)
            expected = loss_of(adaptation.model, example)
            with torch.no_grad():  # as in a loop that lets only the closure record
                loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
            torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    assert state(adaptation).keys() == state(plain).keys()
    for name, tensor in state(plain).items():
        torch.testing.assert_close(state(adaptation)[name], tensor, rtol=0, atol=0)


def test_a_nan_in_a_closure_reaches_no_weight():
    adaptation, optimizer = adapted(METHODS["adalora"])
    before = state(adaptation)
    x, y = next(stream(1))
    with adaptation.attached(optimizer, total_steps=TOTAL):
        optimizer.step(closure_of(adaptation, optimizer, (x * float("nan"), y)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(adaptation).items())
    assert adaptation.history.lines[-1]["event"] == "skipped_non_finite"


def test_two_adapted_models_share_a_closure():
    first, second = rw.adapt(mlp(0), METHODS["adalora"]), rw.adapt(mlp(1), METHODS["adalora"])
    optimizer = torch.optim.AdamW([*first.parameters(), *second.parameters()])
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        loss = loss_of(first.model, next(stream(1))) + loss_of(second.model, next(stream(1)))
        loss.backward()
        return loss

    with first.attached(optimizer, total_steps=TOTAL), second.attached(optimizer, total_steps=TOTAL):
        optimizer.step(closure)
    assert len(calls) == 1
    assert (first.controller.step, second.controller.step) == (1, 1)


def test_optimizers_that_compute_several_gradients_are_refused():
    adaptation, _ = adapted(METHODS["lora"])
    with (
        pytest.raises(rw.StateError, match=r"LBFGS computes several gradients"),
        adaptation.attached(torch.optim.LBFGS(adaptation.parameters()), total_steps=TOTAL),
    ):
        pass


class Sharp(torch.optim.Optimizer):
    """SAM, as it is usually written: from the gradient at hand to a point uphill, and the gradient there, by one call
    of the closure, steps the weights from where they were."""

    def __init__(self, parameters: list[nn.Parameter], rate: float) -> None:
        super().__init__(parameters, {})
        self.rate = rate

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> None:
        held = [p for p in self.param_groups[0]["params"] if p.grad is not None]
        away = [0.05 * p.grad / (p.grad.norm() + 1e-12) for p in held]
        for p, d in zip(held, away, strict=True):
            p.add_(d)
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for p, d in zip(held, away, strict=True):
            p.sub_(d)
            p.sub_(p.grad, alpha=self.rate)


def test_an_optimizer_that_moves_before_it_calls_its_closure():
    states = {}
    for attached in (False, True):
        adaptation = rw.adapt(mlp(), rw.LoRA(rank=2))
        optimizer = Sharp(adaptation.parameters(), rate=0.05)
        with adaptation.attached(optimizer, total_steps=TOTAL) if attached else nullcontext():
            for example in stream(TOTAL):
                loss_of(adaptation.model, example).backward()
                optimizer.step(closure_of(adaptation, optimizer, example))
        states[attached] = state(adaptation)
    assert any(tensor.any() for name, tensor in states[True].items() if name.endswith(".B"))
    assert all(torch.equal(tensor, states[False][name]) for name, tensor in states[True].items())


def test_another_model_that_a_closure_trains_is_seen():
    first, second = rw.adapt(mlp(0), METHODS["adalora"]), rw.adapt(mlp(1), METHODS["adalora"])
    optimizer = torch.optim.AdamW([*first.parameters(), *second.parameters()])
    before = state(second)
    with first.attached(optimizer, total_steps=TOTAL), pytest.raises(rw.StateError, match="is not attached"):
        optimizer.step(closure_of(second, optimizer, next(stream(1))))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(second).items())


class Deaf(torch.optim.SGD):
    def step(self, closure: Callable[[], Tensor]) -> None:
        pass


def test_a_closure_that_is_never_called_is_an_error():
    adaptation, _ = adapted(METHODS["lora"])
    optimizer = Deaf(adaptation.parameters(), lr=0.1)
    with (
        adaptation.attached(optimizer, total_steps=TOTAL),
        pytest.raises(rw.StateError, match=r"Deaf took a step without calling the closure"),
    ):
        optimizer.step(closure_of(adaptation, optimizer, next(stream(1))))


class Twice(torch.optim.SGD):
    def step(self, closure: Callable[[], Tensor]) -> None:
        closure()
        closure()
        super().step()


def test_an_optimizer_that_calls_its_closure_twice_is_an_error():
    adaptation, _ = adapted(METHODS["lora"])
    optimizer = Twice(adaptation.parameters(), lr=0.1)
    before = state(adaptation)
    with (
        adaptation.attached(optimizer, total_steps=TOTAL),
        pytest.raises(rw.StateError, match=r"called its closure twice in a step"),
    ):
        optimizer.step(closure_of(adaptation, optimizer, next(stream(1))))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(adaptation).items())
