"""Dropout that is drawn again from its seed."""

import pytest
import torch

import rankwise as rw
from rankwise.dropout import Dropout, can_be_drawn, draw


@pytest.mark.parametrize("p", [1 / 2**16, 0.05, 0.5, 0.9])
def test_drops_with_its_probability(p):
    n = 2**20
    dropped = n - int(Dropout(p, seed=1).mask(torch.empty(n)).sum())
    assert abs(dropped - p * n) <= 5 * (n * p * (1 - p)) ** 0.5 + n / 2**17  # 5 σ, and the rounding of p


@pytest.mark.parametrize("shape", [(), (1,), (3, 7), (0, 4), (2, 3, 5)], ids=str)
def test_every_call_gives_the_same_mask(shape):
    dropout, like = Dropout(0.5, seed=2), torch.empty(shape)
    assert dropout.mask(like).shape == shape
    assert torch.equal(dropout.mask(like), dropout.mask(like))


def test_bits_of_one_word_are_independent():
    mask = Dropout(0.5, seed=3).mask(torch.empty(2**16, 4)).float()  # four elements a word
    assert (torch.corrcoef(mask.T) - torch.eye(4)).abs().max() < 5 / 2**8


def test_the_mean_stays():
    x = torch.ones(2**20)
    assert abs(float(Dropout(0.3, seed=4).apply(x).mean()) - 1) < 0.005


def test_draws_follow_the_global_seed():
    torch.manual_seed(7)
    first = [draw(0.1) for _ in range(3)]
    torch.manual_seed(7)
    assert [draw(0.1) for _ in range(3)] == first and len(set(first)) == 3


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_what_would_drop_nothing_or_everything_is_refused(p):
    assert not can_be_drawn(p)
    with pytest.raises(rw.ConfigError, match="drops nothing, or everything"):
        rw.LoRA(dropout=p)
