"""AdaLoRA:  Δ = (α/r₀) P diag(λ) Q     P (d_out, r), λ (r,), Q (r, d_in)     (Zhang et al., 2023, eq. 3).

P and Q are kept near orthonormal by a penalty. Every triplet {P_*i, λ_i, Q_i*} has an importance

    S_i = s(λ_i) + mean_j s(P_ji) + mean_j s(Q_ij)     s = Ī · Ū of I = |w · ∂L/∂w|     (eqs. 7-10)

and only the b(t) most important triplets of the whole model keep their λ; b(t) falls from b₀ = Σ r to b_T on a cubic
curve (eq. 12). A dropped triplet keeps P and Q: its λ may grow back, so ranks can return until the final phase begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rankwise.adapter import Controller, LowRank
from rankwise.allocation.history import Allocated, Event, quantiles
from rankwise.allocation.importance import Importance, raw_signal
from rankwise.allocation.orthogonality import Penalty, orthogonality
from rankwise.allocation.schedule import Phases, Span, cubic_budget, parse_span, steps_of
from rankwise.allocation.selection import keep_above, keep_top
from rankwise.base_layers import device_of, sizes
from rankwise.distributed import Columns, local, own_state, part, rank_means, whole_state
from rankwise.errors import ConfigError
from rankwise.low_rank_op import Factors
from rankwise.methods.low_rank import LowRankMethod, check_alpha, is_count
from rankwise.targets import Site


class AdaLoRALayer(LowRank):
    """Trains P, λ and Q."""

    rank_dims: ClassVar[Mapping[str, int]] = {"P": 1, "lam": 0, "Q": 0}

    def __init__(self, base: nn.Module, rank: int, scale: float, settings: "AdaLoRA") -> None:
        device = device_of(base)
        super().__init__(base, rank, settings.dropout, device)
        d_in, d_out = sizes(base)
        self.scale = scale
        self.P = nn.Parameter(torch.randn(d_out, rank, device=device) * settings.init_std)
        self.lam = nn.Parameter(torch.zeros(rank, device=device))
        self.Q = nn.Parameter(torch.randn(rank, d_in, device=device) * settings.init_std)

    def factors(self) -> Factors:
        return Factors(self.P, self.Q, gate=self.lam, scale=self.scale)

    def triplet(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        return self.P, self.lam, self.Q


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(LowRankMethod):
    """Low-rank adaptation that moves a rank budget to the layers that matter."""

    name: ClassVar[str] = "adalora"
    decides_while_training: ClassVar[bool] = True

    rank: int = 12
    """Number of triplets of each layer at the start, r₀; the papers take 1.5 × target_rank."""
    target_rank: int = 8
    """Average number of triplets a layer keeps: the final budget is target_rank × layers."""
    budget: int | None = None
    """The final budget in triplets of the whole model, instead of target_rank × layers."""
    alpha: float | None = None
    """The update is scaled by alpha/rank, with the initial rank, for ever; None means alpha = rank."""
    warmup: Span = 0.1
    """t_i, steps before the budget begins to fall."""
    cooldown: Span = 0.5
    """t_f, steps after it has fallen, with the choice of triplets fixed."""
    every: Span | None = None
    """ΔT, steps between allocations; None means a two-hundredth of the run."""
    beta1: float = 0.85
    """Decay of the running mean Ī."""
    beta2: float = 0.85
    """Decay of the running uncertainty Ū."""
    orthogonality: float = 0.1
    """γ, weight of the orthogonality penalty; 0 turns it off."""
    penalty: Penalty = "mean_norm"
    """Mean of norms (published code) or sum of squares (paper); γ means a different thing under each."""
    score: Literal["sensitivity_uncertainty", "sensitivity", "raw_sensitivity", "magnitude"] = "sensitivity_uncertainty"
    """s = Ī·Ū, Ī, I, or S = |λ| alone: the ablations of the paper's table 5."""
    score_at: Literal["after_step", "before_step"] = "after_step"
    """Sensitivity with the weights after the optimizer's step (published code) or before it (paper)."""
    ties: Literal["exact", "drop"] = "exact"
    """Exactly the budget survives, or all that tie at the threshold are dropped (published code)."""
    mask: Literal["release", "hold"] = "release"
    """Between allocations dropped λ may grow again (published code), or are held at 0."""
    init_std: float = 0.02
    """Standard deviation of P and Q at the start."""

    compact_at_end_of_budget: bool = False
    """Remove dead triplets, their gradients and their moments as soon as the final phase begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(self.alpha)
        if not is_count(self.target_rank) or self.target_rank > self.rank:
            raise ConfigError(
                f"target_rank={self.target_rank} must be between 1 and rank={self.rank}: a budget only falls. "
                "Raise rank (1.5 × target_rank is usual) or lower target_rank."
            )
        if self.budget is not None and not is_count(self.budget):
            raise ConfigError(f"budget={self.budget} is the number of triplets that live at the end: at least 1.")
        for setting in ("beta1", "beta2"):
            if not 0 <= vars(self)[setting] < 1:
                raise ConfigError(f"{setting}={vars(self)[setting]} is the decay of a running mean: in [0, 1).")
        if self.orthogonality < 0:
            raise ConfigError(f"orthogonality={self.orthogonality} would reward parallel vectors; 0 turns it off.")
        if self.init_std <= 0:
            raise ConfigError(f"init_std={self.init_std} must be positive: zero P and Q never learn.")
        for setting in ("warmup", "cooldown", "every"):
            if setting != "every" or self.every is not None:
                parse_span(vars(self)[setting], setting)

    @property
    def compacts(self) -> bool:
        return self.compact_at_end_of_budget

    def build(self, base: nn.Module, site: Site) -> AdaLoRALayer:
        r0 = self.initial_rank(site.name)
        return AdaLoRALayer(base, r0, 1.0 if self.alpha is None else self.alpha / r0, self)

    def controller(
        self, adapters: Mapping[str, LowRank], total_steps: int, steps_per_epoch: int | None
    ) -> "BudgetController":
        spans = {"warmup": self.warmup, "cooldown": self.cooldown}
        warmup, cooldown = (steps_of(s, n, total_steps, steps_per_epoch) for n, s in spans.items())
        default_every = max(1, total_steps // 200)
        every = default_every if self.every is None else steps_of(self.every, "every", total_steps, steps_per_epoch)
        layers = {n: a for n, a in adapters.items() if isinstance(a, AdaLoRALayer)}
        start = sum(self.initial_rank(n) for n in layers)
        end = self.target_rank * len(layers) if self.budget is None else self.budget
        if not 1 <= end <= start:
            raise ConfigError(f"budget={end} triplets must be between 1 and the {start} that the layers start with.")
        return BudgetController(layers, self, Phases(total_steps, warmup, cooldown, every), start, end)


class BudgetController(Controller):
    """Scores triplets every step and hands out the budget every ΔT steps."""

    def __init__(
        self, layers: Mapping[str, AdaLoRALayer], settings: AdaLoRA, phases: Phases, start: int, end: int
    ) -> None:
        self.layers, self.settings, self.phases = dict(layers), settings, phases
        self.start, self.end = start, end
        self.importance = Importance([local(p.detach()) for p in self.parameters()], settings.beta1, settings.beta2)
        self.signals: dict[
            int, Tensor
        ] = {}  # last raw signal by parameter position, for the scores that average nothing
        self.penalty = torch.zeros(())
        self.allocated = False  # whether any mask was decided

    @property
    def settled(self) -> bool:
        return self.step > self.phases.finish

    def summary(self) -> dict[str, float]:
        return {"budget": cubic_budget(self.step, self.phases, self.start, self.end)}

    def parameters(self) -> list[nn.Parameter]:
        return [p for layer in self.layers.values() for p in layer.triplet()]

    def observe(self, grad_scale: Tensor | None) -> None:
        if self.settings.orthogonality:
            self._add_penalty(grad_scale)
        if self.settings.score_at == "before_step":
            self._score(grad_scale)

    def act(self) -> Sequence[Event]:
        if self.settings.score_at == "after_step":
            self._score(None)  # an optimizer that was handed the loss scale has taken it out of the gradients
        events = self._allocate() if self._is_due() else []
        if self.allocated and (self.settings.mask == "hold" or self.step >= self.phases.finish):
            self._apply_masks()
        self.step += 1
        return events

    @torch.no_grad()
    def _add_penalty(self, grad_scale: Tensor | None) -> None:
        """Add γ ∂R/∂P and γ ∂R/∂Q to the gradients, once per optimizer step and after any clipping."""
        layers = [a for a in self.layers.values() if a.P.grad is not None and a.Q.grad is not None]
        if not layers:
            return
        n = len(layers)
        parameters = [a.P for a in layers] + [a.Q for a in layers]
        columns = Columns(parameters, [1] * n + [0] * n)
        self.penalty, gradients = orthogonality(columns.matrices, self.settings.penalty, columns.total)
        factor = self.settings.orthogonality * (1.0 if grad_scale is None else grad_scale)
        for p, gradient in zip(parameters, columns.slices(gradients), strict=True):
            local(p.grad).add_(gradient * factor)  # type: ignore[arg-type]

    @torch.no_grad()
    def _score(self, grad_scale: Tensor | None) -> None:
        if self.step >= self.phases.finish:
            return  # the choice is fixed in the final phase
        if self.settings.score == "magnitude":
            self.signals = {3 * k + 1: local(a.lam).abs() for k, a in enumerate(self.layers.values())}
            return
        parameters = self.parameters()
        indices = [i for i, p in enumerate(parameters) if p.grad is not None]
        weights = [local(parameters[i]) for i in indices]
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        signals = raw_signal("sensitivity", weights, gradients)
        if grad_scale is not None and signals:
            torch._foreach_div_(signals, grad_scale)
        if self.settings.score == "raw_sensitivity":
            self.signals |= dict(zip(indices, signals, strict=True))
        else:
            self.importance.update(indices, signals)

    def _is_due(self) -> bool:
        """Every ΔT steps while the budget falls, and once when the final phase begins."""
        deciding = self.phases.warmup < self.step < self.phases.finish and self.step % self.phases.every == 0
        return deciding or self.step == self.phases.finish

    @torch.no_grad()
    def _allocate(self) -> list[Event]:
        scores = torch.cat(self._triplet_scores())
        budget = min(cubic_budget(self.step, self.phases, self.start, self.end), scores.numel())
        keep = keep_top if self.settings.ties == "exact" else keep_above
        masks = torch.split(keep(scores, budget), [layer.rank for layer in self.layers.values()])
        for layer, mask in zip(self.layers.values(), masks, strict=True):
            layer.live.copy_(mask)
        self._apply_masks()
        self.allocated = True
        return [Allocated(self.step, budget, tuple(self.layers), masks, quantiles(scores), self.penalty.clone())]

    def _triplet_scores(self) -> list[Tensor]:
        """S (r,) of each layer."""
        if self.settings.score == "magnitude":
            lams = [layer.lam for layer in self.layers.values()]
            return rank_means(
                [self._element_scores(3 * k + 1, lam) for k, lam in enumerate(lams)], lams, [0] * len(lams)
            )
        parameters = self.parameters()
        elements = [self._element_scores(i, p) for i, p in enumerate(parameters)]
        s = rank_means(elements, parameters, [1, 0, 0] * len(self.layers))
        return [s_lam + s_P + s_Q for s_P, s_lam, s_Q in zip(s[::3], s[1::3], s[2::3], strict=True)]

    def _element_scores(self, index: int, parameter: Tensor) -> Tensor:
        if self.settings.score in ("raw_sensitivity", "magnitude"):
            return self.signals.get(index, torch.zeros_like(local(parameter)))
        if self.settings.score == "sensitivity":
            return self.importance.mean[index]
        return self.importance.score(index)

    @torch.no_grad()
    def _apply_masks(self) -> None:
        for layer in self.layers.values():
            local(layer.lam).mul_(part(layer.live, layer.lam))

    def keep(self, kept: Mapping[str, Tensor]) -> None:
        """The named layers were compacted to the given ranks: forget the state of the others."""
        for k, (name, layer) in enumerate(self.layers.items()):
            if name not in kept:
                continue
            for j, dim in enumerate(layer.rank_dims.values()):
                self.importance.keep(3 * k + j, dim, kept[name])
                if 3 * k + j in self.signals:
                    self.signals[3 * k + j] = self.signals[3 * k + j].index_select(dim, kept[name])

    def state_dict(self) -> dict[str, Any]:
        signals = {f"signal.{i}": t for i, t in self.signals.items()}
        numbers = {"step": self.step, "allocated": self.allocated, "start": self.start}
        tensors = whole_state(self.importance.state_dict() | signals, self._like())
        return {"tensors": tensors, "numbers": numbers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        tensors = own_state(state["tensors"], self._like())
        self.importance.load_state_dict(tensors)
        prefix = "signal."
        self.signals = {int(n.removeprefix(prefix)): t for n, t in tensors.items() if n.startswith(prefix)}
        self.step = state["numbers"]["step"]
        self.allocated = state["numbers"]["allocated"]

    def _like(self) -> dict[str, Tensor]:
        """The parameter that each saved tensor is laid out as."""
        kinds = ("mean", "uncertainty", "signal")
        return {f"{kind}.{i}": p for i, p in enumerate(self.parameters()) for kind in kinds}
