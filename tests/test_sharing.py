"""Shared layers are adapted once, tied weights are refused, and a layer without a gradient waits."""

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw

ADAPTIVE = [
    rw.AdaLoRA(rank=4, target_rank=2, warmup=0, cooldown=5, every=2),
    rw.AFLoRA(rank=4, scope="all", warmup=20, cooldown=5, every=2),
]


class Shared(nn.Module):
    """Two blocks that are one and the same layer, as in ALBERT."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(6, 6)
        self.first, self.second = layer, layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


class Branching(nn.Module):
    """Takes the left or the right layer, so that each step leaves one without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.take_left = nn.Linear(6, 6), nn.Linear(6, 6), True

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.left if self.take_left else self.right)(x)
        return y


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight


def train_on(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_shared_layer_is_adapted_once_and_in_both_places() -> None:
    model = Shared()
    layer = model.first
    adaptation = rw.adapt(model, rw.LoRA(rank=2))
    assert len(adaptation.adapters) == 1
    assert model.first is model.second is next(iter(adaptation.adapters.values()))
    adaptation.undo()
    assert model.first is model.second is layer


def test_a_tied_weight_is_refused_with_the_other_owner() -> None:
    with pytest.raises(rw.TargetError, match=r"head shares its weight with embed"):
        rw.adapt(Tied(), rw.LoRA(rank=2))


@pytest.mark.parametrize("method", ADAPTIVE, ids=lambda m: m.name)
def test_a_layer_without_gradient_keeps_its_state_and_stops_nothing(method: rw.AdaLoRA | rw.AFLoRA) -> None:
    model = Branching()
    adaptation = rw.adapt(model, method)
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=1e-2)
    with adaptation.attached(optimizer, total_steps=40):
        train_on(model, optimizer, steps=5)
        before = [t.clone() for t in adaptation.controller.importance.mean]
        right = {id(p) for p in adaptation.adapters["right"].parameters(recurse=False)}
        own = [i for i, p in enumerate(adaptation.controller.parameters()) if id(p) in right]
        train_on(model, optimizer, steps=5)
        after = adaptation.controller.importance.mean
        assert all(torch.equal(before[i], after[i]) for i in own)
        model.take_left = False
        train_on(model, optimizer, steps=6)
        assert any(not torch.equal(before[i], after[i]) for i in own)
