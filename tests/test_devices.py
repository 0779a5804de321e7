"""Scores of layers on several devices are compared on one. The devices are PyTorch's fake ones, which take no
operation in place: a whole run on two is no test of this machine."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rankwise.allocation.selection import below_quantile
from rankwise.distributed import means, on_one_device


def scores() -> list[Tensor]:
    return [torch.empty(2, 3, device="cuda:1"), torch.empty(4, device="cuda:0"), torch.empty(2, 2, device="cpu")]


@pytest.mark.parametrize(
    "compared",
    [
        lambda: torch.cat([s.flatten() for s in on_one_device(scores())]),
        lambda: means(scores(), scores()),
    ],
    ids=["all of them", "a mean of each"],
)
def test_on_the_first_device(compared):
    with FakeTensorMode():
        assert compared().device == torch.device("cuda:1")


def test_the_pooled_quantile():
    with FakeTensorMode():
        assert below_quantile(scores(), 0.0) == []  # pooled all the same; whose mean lies below, only data can tell
