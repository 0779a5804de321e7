"""AdaLoRA:  Δ = (α/r₀) P diag(λ) Q     P (d_out, r), λ (r,), Q (r, d_in)     (Zhang et al., 2023, eq. 3).

P and Q are kept near orthonormal by a penalty. Every triplet {P_*i, λ_i, Q_i*} has an importance

    S_i = s(λ_i) + mean_j s(P_ji) + mean_j s(Q_ij)     s = Ī · Ū of I = |w · ∂L/∂w|     (eqs. 7-10)

and only the b(t) most important triplets of the whole model keep their λ; b(t) falls from b₀ = Σ r to b_T on a cubic
curve (eq. 12). A dropped triplet keeps P and Q: its λ may grow back, so ranks can return until the final phase begins.
"""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from rankwise.adapter import LowRank
from rankwise.allocation.orthogonality import Penalty
from rankwise.methods.budget import BudgetController, Rules
from rankwise.methods.budgeted import BudgetedMethod, Score
from rankwise.methods.regulariser import Regulariser
from rankwise.methods.svd_lora import SVDLayer, check_svd
from rankwise.targets import Site


@dataclass(frozen=True, kw_only=True)
class TripletBudget(BudgetedMethod, ABC):
    """The settings of methods that hand out triplets of P, λ and Q."""

    orthogonality: float = 0.1
    """γ, weight of the orthogonality penalty; 0 turns it off."""
    penalty: Penalty = "mean_norm"
    """Mean of norms (published code) or sum of squares (paper); γ means a different thing under each."""
    score: Score = "sensitivity_uncertainty"
    """s = Ī·Ū, Ī, I, or S = |λ| alone: the ablations of the paper's table 5."""
    init_std: float = 0.02
    """Standard deviation of P and Q at the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_svd(self.orthogonality, self.init_std)

    @property
    def rules(self) -> Rules:
        options = (self.score, self.score_at, self.ties, self.mask, self.beta1, self.beta2)
        return Rules(("P", "lam", "Q"), ("lam",), *options)

    def build(self, base: nn.Module, site: Site) -> SVDLayer:
        return SVDLayer(base, self.initial_rank(site.name), self.scale(site.name), self.dropout, self.init_std)

    def regulariser(self, adapters: Mapping[str, LowRank]) -> Regulariser:
        return Regulariser(list(adapters.values()), ("P", "Q"), self.penalty, self.orthogonality)


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(TripletBudget):
    """Low-rank adaptation that moves a rank budget to the layers that matter."""

    name: ClassVar[str] = "adalora"
    learning_rate: ClassVar[float] = 5e-3

    def controller(
        self, adapters: Mapping[str, LowRank], total_steps: int, steps_per_epoch: int | None
    ) -> BudgetController:
        return self.budget_controller(adapters, self.phases(total_steps, steps_per_epoch), self.regulariser(adapters))
