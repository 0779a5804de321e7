"""LoRA:  Δ = (α/r) B A     B (d_out, r) starts at 0, A (r, d_in) at random     (Hu et al., 2021, eq. 3).

A penalty γ R may keep the columns of B and the rows of A apart.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import nn

from rankwise.adapter import LowRank
from rankwise.base_layers import device_of, sizes
from rankwise.errors import ConfigError
from rankwise.low_rank_op import Factors
from rankwise.methods.low_rank import LowRankMethod, check_alpha, matching
from rankwise.methods.regulariser import Regulariser, RegularisingController
from rankwise.plain import Plain
from rankwise.targets import Site


class LoRALayer(LowRank):
    """Trains A and B."""

    rank_dims: ClassVar[Mapping[str, int]] = {"A": 0, "B": 1}

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float, std: float | None) -> None:
        """`std` of a normal A; None: uniform in ±1/√d_in, as in the authors' library."""
        device = device_of(base)
        super().__init__(base, rank, dropout, device)
        d_in, d_out = sizes(base)
        self.scale = scale
        self.A = nn.Parameter(torch.empty(rank, d_in, device=device))
        self.B = nn.Parameter(torch.zeros(d_out, rank, device=device))
        if std is None:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        else:
            nn.init.normal_(self.A, std=std)

    def factors(self) -> Factors:
        return Factors(self.B, self.A, scale=self.scale)

    @torch.no_grad()
    def take_over(self, update: Plain) -> None:
        self.A[: update.rank] = update.down
        self.B.zero_()[:, : update.rank] = update.up / self.scale


def check_std(init_std: float) -> None:
    """Raise ConfigError for a start from which nothing is learnt."""
    if not init_std > 0:
        raise ConfigError(f"init_std={init_std} must be positive: a zero A and a zero B never learn.")


@dataclass(frozen=True, kw_only=True)
class LoRA(LowRankMethod):
    """Low-rank adaptation with a fixed rank."""

    name: ClassVar[str] = "lora"

    alpha: float | None = None
    """The update is scaled by alpha/rank; None means alpha = rank."""
    rank_stabilized: bool = False
    """Scale by alpha/√rank instead (rsLoRA, Kalajdzievski, 2023)."""
    init: Literal["kaiming", "normal"] = "kaiming"
    """A starts uniform in ±1/√d_in ("kaiming"), or normal with standard deviation init_std."""
    init_std: float = 0.02
    """Standard deviation of the normal start."""
    penalty: Literal["none", "cosine", "mean_norm", "sum_of_squares"] = "none"
    """R: mean |cosine| between the vectors ("cosine", LoRA_regu), or a norm of BᵀB − I and AAᵀ − I."""
    orthogonality: float = 0.1
    """γ, weight of the penalty where there is one."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Other alphas for the layers whose names end in the key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(self.alpha)
        for name, alpha in self.alpha_pattern.items():
            check_alpha(alpha, f"alpha_pattern[{name!r}]")
        check_std(self.init_std)
        if not self.orthogonality > 0:
            raise ConfigError(f'orthogonality={self.orthogonality} must be positive; penalty="none" turns it off.')
        if self.penalty == "cosine" and min([self.rank, *self.rank_pattern.values()]) < 2:
            raise ConfigError(
                'penalty="cosine" is the mean over pairs of vectors, and a layer of rank 1 has no pair. Take rank=2 or '
                'more, or penalty="mean_norm".'
            )

    @property
    def decides_while_training(self) -> bool:
        return self.penalty != "none"  # unattached it would train without the penalty, and nobody would notice

    def build(self, base: nn.Module, site: Site) -> LoRALayer:
        r0 = self.initial_rank(site.name)
        alpha = matching(self.alpha_pattern, site.name, r0 if self.alpha is None else self.alpha)
        scale = alpha / (math.sqrt(r0) if self.rank_stabilized else r0)
        return LoRALayer(base, r0, scale, self.dropout, self.init_std if self.init == "normal" else None)

    def controller(
        self, adapters: Mapping[str, LowRank], total_steps: int, steps_per_epoch: int | None
    ) -> RegularisingController | None:
        if self.penalty == "none":
            return None
        return RegularisingController(
            Regulariser(list(adapters.values()), ("B", "A"), self.penalty, self.orthogonality)
        )
