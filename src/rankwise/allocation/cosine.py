"""The cosine regulariser of "LoRA_regu", an ablation in AdaLoRA's published code; its value and its gradient.

    R = 1/(2n) Σ_C  1/(r² − r) Σ_{i≠j} |⟨c_i, c_j⟩| / (‖c_i‖ ‖c_j‖)          C: the columns of B, the rows of A

It asks for right angles and not for unit length. With G = CᵀC, K_ij = G_ij/(‖c_i‖‖c_j‖) and σ_ij = sign(K_ij), i ≠ j:

    ∂R/∂C = C M · 1/(n (r² − r))        M_ij = σ_ij/(‖c_i‖‖c_j‖)        M_ii = −Σ_j |K_ij| / ‖c_i‖²

A vector of length 0 has no direction: its cosines and its gradient are 0. So is R at r = 1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def cosine(
    columns: Sequence[Tensor], total: Callable[[Sequence[Tensor]], list[Tensor]] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Value () and gradients of R for matrices whose columns should be orthogonal: each (d, r); pass A transposed.

    Where rows lie in several processes, `total` makes whole Gram matrices (r, r) of those of the rows that are here.
    """
    grams = [C.mT @ C for C in columns]
    if total is not None:
        grams = total(grams)
    value = torch.zeros((), device=columns[0].device)
    gradients = []
    for C, G in zip(columns, grams, strict=True):
        r = C.shape[1]
        weight = 1 / (len(columns) * max(1, r * r - r))
        length = G.diagonal().clamp_min(0).sqrt()
        inverse = torch.where(length > 0, 1 / length, 0.0)
        K = G * inverse[:, None] * inverse
        K.fill_diagonal_(0.0)
        M = K.sign() * inverse[:, None] * inverse
        M -= torch.diag(K.abs().sum(dim=0) * inverse.square())
        value += weight * K.abs().sum().to(value.device)
        gradients.append(C @ M * (2 * weight))
    return value, gradients
