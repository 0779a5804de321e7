"""The orthogonality penalty of AdaLoRA, its value and its gradient in closed form.

    mean_norm        R = 1/(2n) Σ_k ‖PᵀP − I‖_F + ‖QQᵀ − I‖_F          (published code)
    sum_of_squares   R = Σ_k ‖PᵀP − I‖²_F + ‖QQᵀ − I‖²_F               (paper, eq. 4)

With the residual M = PᵀP − I:  ∂‖M‖_F/∂P = 2 P M / ‖M‖_F (0 at M = 0)  and  ∂‖M‖²_F/∂P = 4 P M.

Computed once per optimizer step, batched over equal shapes: no graph, and the reported loss stays the task's own.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Penalty = Literal["mean_norm", "sum_of_squares"]


@torch.no_grad()
def orthogonality(
    columns: Sequence[Tensor],
    penalty: Penalty,
    total: Callable[[Sequence[Tensor]], list[Tensor]] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Value () and gradients of R for matrices whose columns should be orthonormal: each (d, r); pass Q transposed.

    `columns` holds all 2n matrices, for the mean is over them. Where their rows lie in several processes, `total` makes
    whole Gram matrices (r, r) of those of the rows that are here.
    """
    by_shape: dict[tuple[torch.Size, torch.device], list[int]] = defaultdict(list)
    for i, C in enumerate(columns):
        by_shape[C.shape, C.device].append(i)
    gradients: list[Tensor] = [torch.empty(0)] * len(columns)
    value = torch.zeros((), device=columns[0].device)
    stacks = [torch.stack([columns[i] for i in indices]) for indices in by_shape.values()]  # (k, d, r)
    grams = [C.mT @ C for C in stacks]  # (k, r, r)
    if total is not None:
        order = [i for indices in by_shape.values() for i in indices]
        here = dict(zip(order, (G for Gs in grams for G in Gs), strict=True))
        whole = total([here[i] for i in range(len(columns))])  # in the order in which every process has them
        grams = [torch.stack([whole[i] for i in indices]) for indices in by_shape.values()]
    for indices, C, G in zip(by_shape.values(), stacks, grams, strict=True):
        M = G - torch.eye(C.shape[-1], device=C.device)
        if penalty == "mean_norm":
            norm = torch.linalg.matrix_norm(M)  # (k,)
            value += norm.sum().to(value.device) / len(columns)
            # M = 0 exactly is the minimum: 0/0 there must read 0
            M *= (2 / len(columns)) / norm.masked_fill(norm == 0, torch.inf)[:, None, None]
        else:
            value += M.square().sum().to(value.device)
            M *= 4
        for i, gradient in zip(indices, (C @ M).unbind(), strict=True):
            gradients[i] = gradient
    return value, gradients
