"""Who stays and who goes: exact, on the device, without a host synchronisation."""

import torch
from torch import Tensor


def keep_top(scores: Tensor, budget: int) -> Tensor:
    """Mask of exactly `budget` survivors: scores (n,) -> (n,) bool. Ties are broken by order, the earlier one stays."""
    order = torch.sort(scores, descending=True, stable=True).indices
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[order[:budget]] = True
    return mask


def keep_above(scores: Tensor, budget: int) -> Tensor:
    """The published code's rule: keep what lies strictly above the (n − budget)-th smallest score.

    Ties at the threshold all go, so fewer than `budget` may stay; with all scores equal, none does.
    """
    drop = scores.numel() - budget
    if drop == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    return scores > torch.sort(scores).values[drop - 1]


def lowest(scores: Tensor, count: int) -> list[int]:
    """Indices of the `count` lowest scores, ties by order. One host synchronisation: freezing changes the graph."""
    order: list[int] = torch.sort(scores, stable=True).indices[: max(0, count)].tolist()
    return order


def below_quantile(products: list[Tensor], share: float) -> list[int]:
    """AFLoRA's published code: indices of the matrices whose mean lies below the element of rank ⌊N · share⌋ of all
    their elements pooled, N elements in all. Rank 0 freezes none.

    A mean is compared with a quantile of elements, so this is not "the lowest share": heavy tails delay freezing.
    """
    pooled = torch.cat([p.flatten() for p in products])
    rank = int(pooled.numel() * share)
    if rank == 0:
        return []
    threshold = torch.sort(pooled).values[rank - 1]
    means = torch.stack([p.mean() for p in products])
    return [int(i) for i in torch.nonzero(means < threshold).flatten().tolist()]
