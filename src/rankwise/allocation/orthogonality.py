"""The orthogonality penalty of AdaLoRA, its value and its gradient in closed form.

    mean_norm        R = 1/(2n) Σ_k ‖PᵀP − I‖_F + ‖QQᵀ − I‖_F          (published code)
    sum_of_squares   R = Σ_k ‖PᵀP − I‖²_F + ‖QQᵀ − I‖²_F               (paper, eq. 4)

With C (r, d) for Pᵀ or Q, one row for each rank, G = C Cᵀ and the residual E = G − I:

    ∂‖E‖_F/∂C = 2 E C / ‖E‖_F (0 at E = 0)          ∂‖E‖²_F/∂C = 4 E C

so that of each matrix the Gram matrix alone is needed, and the gradient is M C with an M (r, r) made of it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Penalty = Literal["mean_norm", "sum_of_squares"]


@torch.no_grad()
def orthogonality(grams: Sequence[Tensor], penalty: Penalty) -> tuple[Tensor, list[Tensor]]:
    """Value () of R, and M (r, r) of each matrix, from the Gram matrices of all 2n: the mean is over them."""
    value = torch.zeros((), device=grams[0].device)
    multipliers: list[Tensor] = [torch.empty(0)] * len(grams)
    alike: dict[tuple[torch.Size, torch.device], list[int]] = defaultdict(list)
    for i, G in enumerate(grams):
        alike[G.shape, G.device].append(i)
    for positions in alike.values():
        E = torch.stack([grams[i] for i in positions])  # (k, r, r)
        E.diagonal(dim1=1, dim2=2).sub_(1)
        if penalty == "mean_norm":
            norm = torch.linalg.matrix_norm(E)  # (k,)
            value += norm.sum().to(value.device) / len(grams)
            # E = 0 exactly is the minimum: 0/0 there must read 0
            E *= (2 / len(grams)) / norm.masked_fill(norm == 0, torch.inf)[:, None, None]
        else:
            value += E.square().sum().to(value.device)
            E *= 4
        for i, M in zip(positions, E.unbind(), strict=True):
            multipliers[i] = M
    return value, multipliers
