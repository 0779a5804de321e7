"""Products of rank size, of many thin matrices at once.

Each matrix C (r, d) has one row for each rank. On a CPU they are taken one by one, which copies nothing; elsewhere,
where starting a kernel costs more than copying, those of one shape are stacked.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def grams(matrices: Sequence[Tensor]) -> list[Tensor]:
    """C Cᵀ (r, r) of each."""
    made: list[Tensor] = [torch.empty(0)] * len(matrices)
    for positions in _batches(matrices):
        if matrices[positions[0]].device.type == "cpu":
            products = [matrices[i] @ matrices[i].T for i in positions]
        else:
            C = torch.stack([matrices[i] for i in positions])
            products = list((C @ C.mT).unbind())
        for i, product in zip(positions, products, strict=True):
            made[i] = product
    return made


def add_products_(targets: Sequence[Tensor], multipliers: Sequence[Tensor], matrices: Sequence[Tensor]) -> None:
    """Each target (r', d) ← target + M C, with M (r', r)."""
    for positions in _batches(matrices):
        if matrices[positions[0]].device.type == "cpu":
            for i in positions:
                targets[i].addmm_(multipliers[i], matrices[i])
        else:
            products = torch.stack([multipliers[i] for i in positions]) @ torch.stack([matrices[i] for i in positions])
            torch._foreach_add_([targets[i] for i in positions], list(products.unbind()))


def _batches(matrices: Sequence[Tensor]) -> Iterator[list[int]]:
    """Positions of the matrices of one shape on one device."""
    alike: dict[tuple[torch.Size, torch.device], list[int]] = defaultdict(list)
    for i, C in enumerate(matrices):
        alike[C.shape, C.device].append(i)
    yield from alike.values()
