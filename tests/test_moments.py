"""Compaction cuts whatever an optimizer keeps of a tensor, or refuses before anything is changed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import rankwise as rw
from toy import mlp, step, stream

TOTAL = 24
METHOD = rw.AdaLoRA(rank=4, target_rank=2, warmup=2, cooldown=8, every=2, compact_at_end_of_budget=True)
OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "adafactor of transformers": lambda p: transformers.Adafactor(p, lr=1e-2, relative_step=False),
    "the same with momentum": lambda p: transformers.Adafactor(p, lr=1e-2, relative_step=False, beta1=0.9),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_compacted_run_goes_on(make):
    """Every tensor of the state has the shape that the optimizer gives one for a new parameter of the new shape."""
    adaptation = rw.adapt(mlp(), METHOD)
    optimizer = make(adaptation.parameters())
    with adaptation.attached(optimizer, total_steps=TOTAL):
        for example in stream(TOTAL):
            step(adaptation, optimizer, example)
    assert min(adapter.rank for adapter in adaptation.adapters.values()) < 4

    alike = {p: nn.Parameter(p.detach().clone()) for p in adaptation.parameters() if p.numel()}
    for parameter in alike.values():
        parameter.grad = torch.ones_like(parameter)
    fresh = make(list(alike.values()))
    fresh.step()
    for parameter, new in alike.items():
        assert shapes(optimizer.state[parameter]) == shapes(fresh.state[new])


def shapes(state: dict[str, Any]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items() if isinstance(value, torch.Tensor)}


class InBlocks(torch.optim.Optimizer):
    """Keeps a moment in bytes, with a scale for each block of elements, as 8-bit optimizers do."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(parameter.grad, alpha=1e-2)
            self.state[parameter] = {
                "state1": torch.zeros_like(parameter, dtype=torch.uint8),
                "absmax1": torch.zeros(parameter.numel() // 8 + 1),
            }


class InLists(InBlocks):
    """Keeps matrices of its own making in lists, as SOAP does."""

    def step(self, closure: None = None) -> None:
        super().step()
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {"Q": [torch.eye(size) for size in parameter.shape], "shape": list(parameter.shape)}


@pytest.mark.parametrize("spoilt", [0, 1])
def test_lists_are_refused_as_soon_as_they_are_there(spoilt: int):
    """A step without a gradient leaves no moments yet."""
    adaptation = rw.adapt(mlp(), METHOD)
    optimizer = InLists(adaptation.parameters())
    with adaptation.attached(optimizer, total_steps=TOTAL):
        for x, y in stream(spoilt):
            with torch.no_grad():
                optimizer.param_groups[0]["params"] = []
            step(adaptation, optimizer, (x, y))
            optimizer.param_groups[0]["params"] = adaptation.parameters()
        with pytest.raises(rw.StateError, match=r"InLists keeps Q of an adapter's .* as a list"):
            step(adaptation, optimizer, next(stream(1)))


def test_moments_that_cannot_be_cut_are_refused_at_the_first_step():
    adaptation = rw.adapt(mlp(), METHOD)
    optimizer = InBlocks(adaptation.parameters())
    with (
        adaptation.attached(optimizer, total_steps=TOTAL),
        pytest.raises(rw.StateError, match=r"InBlocks keeps state1 .* in torch.uint8.*such as AdamW"),
    ):
        step(adaptation, optimizer, next(stream(1)))


def test_a_refused_compaction_changes_nothing():
    adaptation = rw.adapt(mlp(), replace(METHOD, compact_at_end_of_budget=False))
    optimizer = InBlocks(adaptation.parameters())
    with adaptation.attached(optimizer, total_steps=TOTAL):
        for example in stream(TOTAL):
            step(adaptation, optimizer, example)
    before = {name: tensor.clone() for name, tensor in adaptation.model.state_dict().items()}
    parameters = adaptation.parameters()
    with pytest.raises(rw.StateError, match="InBlocks keeps"):
        adaptation.compact(optimizer)
    assert all(old is new for old, new in zip(parameters, adaptation.parameters(), strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in adaptation.model.state_dict().items())
    assert set(optimizer.state) == set(parameters)
    adaptation.compact()  # without the optimizer
    assert sum(adapter.rank for adapter in adaptation.adapters.values()) == 6
