"""A small regression by a few matrices, for tests that need many steps."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

import rankwise as rw

Example = tuple[Tensor, Tensor]
D_IN, D_HIDDEN, D_OUT = 10, 16, 7


def mlp(seed: int = 0, layers: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    sizes = [D_IN, *(D_HIDDEN - 4 * (k % 2) for k in range(layers - 1)), D_OUT]
    linears = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*(m for linear in linears for m in (linear, nn.Tanh())))[:-1]


def stream(steps: int, seed: int = 0, rows: int = 12) -> Iterator[Example]:
    """Another batch for every step, from a teacher that the frozen weights do not know."""
    generator = torch.Generator().manual_seed(1000 + seed)
    teacher = torch.randn(D_OUT, D_IN, generator=generator)
    for _ in range(steps):
        x = torch.randn(rows, D_IN, generator=generator)
        yield x, torch.sin(x @ teacher.T)


def loss_of(model: nn.Module, example: Example) -> Tensor:
    x, y = example
    return nn.functional.mse_loss(model(x), y)


def step(adaptation: rw.Adaptation, optimizer: torch.optim.Optimizer, example: Example) -> None:
    loss_of(adaptation.model, example).backward()
    optimizer.step()
    optimizer.zero_grad()
