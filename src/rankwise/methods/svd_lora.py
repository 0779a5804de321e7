"""SVD-LoRA:  Δ = (α/r) P diag(λ) Q     P (d_out, r), λ (r,), Q (r, d_in)     (AdaLoRA without its budget).

P and Q are kept near orthonormal by the penalty γ R, so that Δ stays near a singular value decomposition.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from rankwise.adapter import LowRank
from rankwise.allocation.orthogonality import Penalty
from rankwise.base_layers import device_of, sizes
from rankwise.errors import ConfigError
from rankwise.low_rank_op import Factors
from rankwise.methods.low_rank import LowRankMethod, check_alpha
from rankwise.methods.regulariser import Regulariser, RegularisingController
from rankwise.plain import Plain
from rankwise.targets import Site


class SVDLayer(LowRank):
    """Trains P, λ and Q."""

    rank_dims: ClassVar[Mapping[str, int]] = {"P": 1, "lam": 0, "Q": 0}

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float, init_std: float) -> None:
        device = device_of(base)
        super().__init__(base, rank, dropout, device)
        d_in, d_out = sizes(base)
        self.scale = scale
        self.P = nn.Parameter(torch.randn(d_out, rank, device=device) * init_std)
        self.lam = nn.Parameter(torch.zeros(rank, device=device))
        self.Q = nn.Parameter(torch.randn(rank, d_in, device=device) * init_std)

    def factors(self) -> Factors:
        return Factors(self.P, self.Q, gate=self.lam, scale=self.scale)

    @torch.no_grad()
    def take_over(self, update: Plain) -> None:
        P, sigma, Q = update.svd()
        self.P[:, : len(sigma)], self.Q[: len(sigma)] = P, Q
        self.lam.zero_()[: len(sigma)] = sigma / self.scale

    def triplet(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        return self.P, self.lam, self.Q


def check_svd(orthogonality: float, init_std: float) -> None:
    """Raise ConfigError for settings with which P and Q would not learn, or would be pulled together."""
    if not orthogonality >= 0:
        raise ConfigError(f"orthogonality={orthogonality} would reward parallel vectors; 0 turns it off.")
    if not init_std > 0:
        raise ConfigError(f"init_std={init_std} must be positive: zero P and Q never learn.")


@dataclass(frozen=True, kw_only=True)
class SVDLoRA(LowRankMethod):
    """Low-rank adaptation in the form of a singular value decomposition, with a fixed rank."""

    name: ClassVar[str] = "svd-lora"
    learning_rate: ClassVar[float] = 5e-3

    alpha: float | None = None
    """The update is scaled by alpha/rank; None means alpha = rank."""
    orthogonality: float = 0.1
    """γ, weight of the orthogonality penalty; 0 turns it off."""
    penalty: Penalty = "mean_norm"
    """Mean of norms (published code) or sum of squares (paper); γ means a different thing under each."""
    init_std: float = 0.02
    """Standard deviation of P and Q at the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(self.alpha)
        check_svd(self.orthogonality, self.init_std)

    @property
    def decides_while_training(self) -> bool:
        return self.orthogonality > 0  # unattached it would train without the penalty, and nobody would notice

    def build(self, base: nn.Module, site: Site) -> SVDLayer:
        r = self.initial_rank(site.name)
        return SVDLayer(base, r, 1.0 if self.alpha is None else self.alpha / r, self.dropout, self.init_std)

    def controller(
        self, adapters: Mapping[str, LowRank], total_steps: int, steps_per_epoch: int | None
    ) -> RegularisingController | None:
        if not self.decides_while_training:
            return None
        return RegularisingController(
            Regulariser(list(adapters.values()), ("P", "Q"), self.penalty, self.orthogonality)
        )
