"""The settings of every method that hands out a budget of ranks, and how a run's budget follows from them."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import ClassVar, Literal, Self

from rankwise.adapter import LowRank
from rankwise.allocation.amount import check_budget, parameters_of
from rankwise.allocation.schedule import Phases, Span, parse_span, steps_of
from rankwise.errors import ConfigError
from rankwise.methods.budget import Budget, BudgetController, Rules
from rankwise.methods.low_rank import LowRankMethod, check_alpha, rescaled
from rankwise.methods.regulariser import Regulariser
from rankwise.methods.settings import is_count

Score = Literal["sensitivity_uncertainty", "sensitivity", "raw_sensitivity", "magnitude"]


@dataclass(frozen=True, kw_only=True)
class BudgetedMethod(LowRankMethod):
    """A low-rank method that moves a budget of ranks to the layers that matter."""

    size_setting: ClassVar[str | None] = "target_rank"

    rank: int = 12
    """Number of ranks of each layer at the start, r₀; the papers take 1.5 × target_rank."""
    target_rank: int = 8
    """Average number of ranks a layer keeps: the final budget is target_rank × layers."""
    budget: int | str | None = None
    """The final budget of the whole model instead: in ranks (576), in parameters ("0.3M") or in bytes ("1.2MB")."""
    alpha: float | None = None
    """The update is scaled by alpha/rank, with the initial rank, for ever; None means alpha = rank."""
    warmup: Span = 0.1
    """t_i, steps before the budget begins to fall."""
    cooldown: Span = 0.5
    """t_f, steps after it has fallen, with the choice of ranks fixed."""
    every: Span | None = None
    """ΔT, steps between allocations; None means a two-hundredth of the run."""
    beta1: float = 0.85
    """Decay of the running mean Ī."""
    beta2: float = 0.85
    """Decay of the running uncertainty Ū."""
    score_at: Literal["after_step", "before_step"] = "after_step"
    """Sensitivity with the weights after the optimizer's step (published code) or before it (paper)."""
    ties: Literal["exact", "drop"] = "exact"
    """Exactly the budget survives, or all that tie at the threshold are dropped (published code)."""
    mask: Literal["release", "hold"] = "release"
    """Between allocations dropped ranks may grow again (published code), or are held at 0."""
    compact_at_end_of_budget: bool = False
    """Remove dead ranks, their gradients and their moments as soon as the final phase begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(self.alpha)
        if not is_count(self.target_rank) or (self.budget is None and self.target_rank > self.rank):
            raise ConfigError(
                f"target_rank={self.target_rank} must be between 1 and rank={self.rank}: a budget only falls. "
                "Raise rank (1.5 × target_rank is usual) or lower target_rank."
            )
        if self.budget is not None:
            check_budget(self.budget)
        if isinstance(self.budget, str) and self.ties == "drop":
            raise ConfigError(
                f'budget={self.budget!r} with ties="drop": the published rule counts ranks and knows no sizes. Leave '
                'ties="exact", or state the budget in ranks.'
            )
        for setting in ("beta1", "beta2"):
            if not 0 <= vars(self)[setting] < 1:
                raise ConfigError(f"{setting}={vars(self)[setting]} is the decay of a running mean: in [0, 1).")
        for setting in ("warmup", "cooldown", "every"):
            if setting != "every" or self.every is not None:
                parse_span(vars(self)[setting], setting)

    def resized(self, size: int) -> Self:
        """With target_rank `size`, a rank of 1.5 times that as in the papers, and alpha/rank as it is."""
        rank = ceil(1.5 * size)
        return replace(self, rank=rank, target_rank=size, budget=None, **rescaled(self, rank))

    def filling(self, parameters: int) -> Self:
        return replace(self, budget=str(parameters))

    @property
    def decides_while_training(self) -> bool:
        return True

    @property
    def compacts(self) -> bool:
        return self.compact_at_end_of_budget

    @property
    @abstractmethod
    def rules(self) -> Rules:
        """What is scored and what is zeroed."""

    def scale(self, site_name: str) -> float:
        """α/r₀ of a layer."""
        return 1.0 if self.alpha is None else self.alpha / self.initial_rank(site_name)

    def phases(self, total_steps: int, steps_per_epoch: int | None) -> Phases:
        spans = {"warmup": self.warmup, "cooldown": self.cooldown}
        warmup, cooldown = (steps_of(s, n, total_steps, steps_per_epoch) for n, s in spans.items())
        default_every = max(1, total_steps // 200)
        every = default_every if self.every is None else steps_of(self.every, "every", total_steps, steps_per_epoch)
        return Phases(total_steps, warmup, cooldown, every)

    def budget_controller(
        self, adapters: Mapping[str, LowRank], phases: Phases, regulariser: Regulariser | None = None
    ) -> BudgetController:
        costs = {n: self._cost(a) for n, a in adapters.items()}
        start = sum(self.initial_rank(n) * costs[n] for n in adapters)
        end, unit = self.target_rank * len(adapters), "ranks"
        if isinstance(self.budget, str):
            end, unit = parameters_of(self.budget), "parameters"
        elif self.budget is not None:
            end = self.budget
        least = min(costs.values(), default=1)
        if not least <= end <= start:
            raise ConfigError(
                f"budget={self.budget or end} must be between {least:,} and the {start:,} {unit} that the layers start "
                "with. Lower budget, or raise rank."
            )
        budget = Budget(phases, start, end, costs, priced=unit == "parameters")
        return BudgetController(adapters, self.rules, budget, regulariser)

    def _cost(self, layer: LowRank) -> int:
        """What one rank of the layer costs: its parameters, where the budget counts those."""
        if not isinstance(self.budget, str):
            return 1
        shapes = {name: layer.get_parameter(name).shape for name in layer.rank_dims}
        return sum(prod(n for d, n in enumerate(shapes[t]) if d != dim) for t, dim in layer.rank_dims.items())
