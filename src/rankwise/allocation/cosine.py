"""The cosine regulariser of "LoRA_regu", an ablation in AdaLoRA's published code; its value and its gradient.

    R = 1/(2n) Σ_C  1/(r² − r) Σ_{i≠j} |⟨c_i, c_j⟩| / (‖c_i‖ ‖c_j‖)          c_i: the rows of C = Bᵀ or A

It asks for right angles and not for unit length. With G = C Cᵀ, K_ij = G_ij/(‖c_i‖‖c_j‖) and σ_ij = sign(K_ij), i ≠ j:

    ∂R/∂C = M C · 1/(n (r² − r))        M_ij = σ_ij/(‖c_i‖‖c_j‖)        M_ii = −Σ_j |K_ij| / ‖c_i‖²

A vector of length 0 has no direction: its cosines and its gradient are 0. So is R at r = 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def cosine(grams: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Value () of R, and of each matrix C (r, d) the M (r, r) whose M C is its gradient, from the Gram matrices."""
    value = torch.zeros((), device=grams[0].device)
    multipliers = []
    for G in grams:
        r = G.shape[0]
        weight = 1 / (len(grams) * max(1, r * r - r))
        length = G.diagonal().clamp_min(0).sqrt()
        inverse = torch.where(length > 0, 1 / length, 0.0)
        K = G * inverse[:, None] * inverse
        K.fill_diagonal_(0.0)
        M = K.sign() * inverse[:, None] * inverse
        M -= torch.diag(K.abs().sum(dim=0) * inverse.square())
        value += weight * K.abs().sum().to(value.device)
        multipliers.append(M * (2 * weight))
    return value, multipliers
