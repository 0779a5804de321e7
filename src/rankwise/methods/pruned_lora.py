"""Pruned LoRA:  Δ = (α/r₀) B A     B (d_out, r) starts at 0, A (r, d_in) at random    (AdaLoRA paper, "Prune LoRA")

AdaLoRA's budget over doublets {B_*i, A_i*} instead of triplets, without a λ that could be dropped and come back:

    S_i = mean_j s(B_ji) + mean_j s(A_ij)

and of what is dropped both vectors are set to 0. Two zero vectors give each other a gradient of 0: what is gone comes
back only by a momentum that was left over.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from rankwise.adapter import LowRank
from rankwise.methods.budget import BudgetController, Rules
from rankwise.methods.budgeted import BudgetedMethod
from rankwise.methods.lora import LoRALayer, check_std
from rankwise.targets import Site


@dataclass(frozen=True, kw_only=True)
class PrunedLoRA(BudgetedMethod):
    """LoRA of which the least important pairs of vectors are removed while it trains."""

    name: ClassVar[str] = "pruned-lora"

    score: Literal["sensitivity_uncertainty", "sensitivity", "raw_sensitivity"] = "sensitivity_uncertainty"
    """s = Ī·Ū, Ī or I."""
    reset_moments_on_prune: bool = False
    """Clear the optimizer's moments of what is set to 0, so that it stays there; published code leaves them."""
    init: Literal["kaiming", "normal"] = "kaiming"
    """A starts uniform in ±1/√d_in ("kaiming"), or normal with standard deviation init_std."""
    init_std: float = 0.02
    """Standard deviation of the normal start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_std(self.init_std)

    @property
    def rules(self) -> Rules:
        options = (self.score, self.score_at, self.ties, self.mask, self.beta1, self.beta2)
        return Rules(("B", "A"), ("B", "A"), *options, reset_moments=self.reset_moments_on_prune)

    def build(self, base: nn.Module, site: Site) -> LoRALayer:
        std = self.init_std if self.init == "normal" else None
        return LoRALayer(base, self.initial_rank(site.name), self.scale(site.name), self.dropout, std)

    def controller(
        self, adapters: Mapping[str, LowRank], total_steps: int, steps_per_epoch: int | None
    ) -> BudgetController:
        return self.budget_controller(adapters, self.phases(total_steps, steps_per_epoch))
