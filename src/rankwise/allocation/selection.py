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


def keep_affordable(scores: Tensor, costs: Tensor, budget: int, prices: int) -> Tensor:
    """Mask of the survivors when each costs something: scores (n,), costs (n,) whole -> (n,) bool.

    Greedy: by score per cost, the highest first and ties by order, everything that what is left of the budget can still
    pay for. Never above the budget. `prices` is the number of different costs, at least 1.
    """
    order = torch.sort(scores / costs, descending=True, stable=True).indices
    cost = costs[order]
    taken = torch.zeros_like(scores, dtype=torch.bool)
    # all up to the first that is too dear are taken at once; its price is out of reach from then on, so that as many
    # rounds as there are prices are enough, and none has to ask the device how far it came
    for _ in range(prices):
        left = budget - (cost * taken).sum()
        candidates = ~taken & (cost <= left)
        taken |= candidates & (torch.cumsum(cost * candidates, dim=0) <= left)
    mask = torch.zeros_like(taken)
    mask[order] = taken
    return mask


def lowest(scores: Tensor, count: int) -> list[int]:
    """Indices of the `count` lowest scores, ties by order. One host synchronisation: freezing changes the graph."""
    order: list[int] = torch.sort(scores, stable=True).indices[: max(0, count)].tolist()
    return order


def below_quantile(products: list[Tensor], share: float) -> list[int]:
    """AFLoRA's published code: indices of the matrices whose mean lies below the element of rank ⌊N · share⌋ of all
    their elements pooled, N elements in all. Rank 0 freezes none.

    A mean is compared with a quantile of elements, so this is not "the lowest share": heavy tails delay freezing.
    """
    pooled = torch.cat([p.flatten().to(products[0].device) for p in products])
    rank = int(pooled.numel() * share)
    if rank == 0:
        return []
    threshold = torch.sort(pooled).values[rank - 1]
    means = torch.stack([p.mean() for p in products])
    return [int(i) for i in torch.nonzero(means < threshold).flatten().tolist()]
