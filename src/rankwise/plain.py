"""An update in its plain form, whatever method made it: two matrices, and nothing between, before or after them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Plain(NamedTuple):
    """Δ = up @ down."""

    up: Tensor  # (d_out, r), which others call B
    down: Tensor  # (r, d_in), which others call A

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)"""
        return self.up.shape[0], self.down.shape[1]

    def padded(self, rank: int) -> "Plain":
        """The same Δ with `rank` ranks, the new ones zero."""
        new = rank - self.rank
        return Plain(F.pad(self.up, (0, new)), F.pad(self.down, (0, 0, 0, new))) if new else self

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """P (d_out, k), σ (k,), Q (k, d_in): Δ = P diag(σ) Q, PᵀP = I, QQᵀ = I, k = min(r, d_out, d_in).

        Of the small core that QR leaves of the two factors; the full matrix is never made.
        """
        Q_up, R_up = torch.linalg.qr(self.up)
        Q_down, R_down = torch.linalg.qr(self.down.T)
        U, S, Vh = torch.linalg.svd(R_up @ R_down.T, full_matrices=False)
        return Q_up @ U, S, Vh @ Q_down.T

    def norm(self) -> float:
        """‖Δ‖_F, without the full matrix."""
        core = torch.linalg.qr(self.up, mode="r").R @ torch.linalg.qr(self.down.T, mode="r").R.T
        return float(core.norm().detach())
