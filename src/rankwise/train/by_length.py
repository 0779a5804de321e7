"""Rows of about one length in one batch: less of it is padding.

Unlike transformers' own sampler, whose order hangs on what was drawn before, the order here is a function of seed and
epoch alone, so that a run which is resumed in mid-epoch goes on with the rows that are left of it.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class ByLength(Sampler[int]):
    """A permutation of the rows: drawn at random, then sorted by length within stretches of up to fifty steps.

    `step_rows` are the rows of one optimizer step, over all processes. Their order is drawn again for each epoch.
    """

    def __init__(self, lengths: Sequence[int], step_rows: int, seed: int) -> None:
        self.lengths, self.step_rows, self.seed = list(lengths), step_rows, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch, from 0 on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from get_length_grouped_indices(self.lengths, self.step_rows, generator=generator)
