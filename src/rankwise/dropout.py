"""Dropout that is drawn again in the backward pass instead of stored: a seed is all that stays from the forward pass.

A stored mask, or a stored copy of the dropped input, would cost as much memory as the input of every adapted layer.
Each element takes 16 random bits, so the probability is a multiple of 2⁻¹⁶; that is four times faster than torch's own
dropout on a CPU, where drawing is dearer than the low-rank products themselves.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.fake import is_fake

STEPS = 2**16


class Dropout(NamedTuple):
    """One draw: which elements of an input are dropped."""

    p: float  # probability of being dropped
    seed: int

    @property
    def survivors_scale(self) -> float:
        """1 / (1 − p), by which survivors are multiplied so that the mean stays."""
        return STEPS / (STEPS - _dropped(self.p))

    def mask(self, like: Tensor) -> Tensor:
        """The same bool tensor of the shape of `like` at every call: True where an element survives."""
        count = like.numel()
        words = torch.empty(-(-count // 4), dtype=torch.int64, device=like.device)
        words.random_(-(2**63), None, generator=torch.Generator(like.device).manual_seed(self.seed))
        bits = words.view(torch.int16)[:count]
        return (bits >= _dropped(self.p) - STEPS // 2).view(like.shape)

    def apply(self, x: Tensor) -> Tensor:
        """x with the dropped elements at 0 and the others scaled up."""
        return (x * self.mask(x)).mul_(self.survivors_scale)


def draw(p: float) -> Dropout:
    """A new draw; its seed comes from torch's global generator, so that a seeded run repeats itself."""
    seed = torch.randint(2**62, ())
    return Dropout(p, 0 if is_fake(seed) else int(seed))  # a fake one, in a plan, has no value


def can_be_drawn(p: float) -> bool:
    """Whether p is far enough from 0 and 1 to drop some elements and keep some."""
    return 0 < _dropped(p) < STEPS


def _dropped(p: float) -> int:
    return round(p * STEPS)
