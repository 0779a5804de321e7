"""A budget of ranks, handed out while training.

One unit is rank i of every tensor of a layer: a triplet {P_*i, λ_i, Q_i*}, a doublet {B_*i, A_i*}. Its importance is

    S_i = Σ over its tensors of mean_j s(w_ij)     s = Ī · Ū of I = |w · ∂L/∂w|     (AdaLoRA, eqs. 7-10)

and only the most important that b(t) has room for are kept; b(t) falls from b₀ to b_T on a cubic curve (eq. 12).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankwise.adapter import LowRank
from rankwise.allocation.forecast import Forecast, Units
from rankwise.allocation.history import Allocated, Event, quantiles
from rankwise.allocation.importance import Importance, raw_signal
from rankwise.allocation.schedule import Phases, cubic_budget
from rankwise.allocation.selection import keep_above, keep_affordable, keep_top
from rankwise.controller import Controller
from rankwise.distributed import local, on_one_device, own_state, part, rank_means, whole_state
from rankwise.methods.regulariser import Regulariser


@dataclass(frozen=True)
class Rules:
    """How units are scored, and what is done to those that are dropped."""

    tensors: tuple[str, ...]  # that a unit has a part of, in the order in which their state is saved
    zeroed: tuple[str, ...]  # set to 0 where a unit was dropped
    score: Literal["sensitivity_uncertainty", "sensitivity", "raw_sensitivity", "magnitude"]
    score_at: Literal["after_step", "before_step"]
    ties: Literal["exact", "drop"]
    mask: Literal["release", "hold"]
    beta1: float
    beta2: float
    reset_moments: bool = False  # of what is set to 0

    @property
    def scored(self) -> tuple[str, ...]:
        """The tensors whose elements count; S = |λ| looks at what is zeroed only."""
        return self.zeroed if self.score == "magnitude" else self.tensors


@dataclass(frozen=True)
class Budget:
    """How much may live, and when; in ranks, or in parameters where `costs` says what a rank costs."""

    phases: Phases
    start: int
    end: int
    costs: Mapping[str, int]  # of one rank, by layer
    priced: bool = False  # whether it is in parameters, and costs are more than 1


class BudgetController(Controller):
    """Scores units every step and hands out the budget every ΔT steps."""

    def __init__(
        self, layers: Mapping[str, LowRank], rules: Rules, budget: Budget, regulariser: Regulariser | None = None
    ) -> None:
        self.layers, self.rules, self.budget, self.regulariser = dict(layers), rules, budget, regulariser
        self.phases = budget.phases
        self.importance = Importance([local(p.detach()) for p in self.parameters()], rules.beta1, rules.beta2)
        # the last raw signals by parameter position, for the scores that average nothing
        self.signals: dict[int, Tensor] = {}
        self.allocated = False  # whether any mask was decided
        self._masked = False  # whether the last step applied one

    @property
    def settled(self) -> bool:
        return self.step > self.phases.finish

    def summary(self) -> dict[str, float]:
        return {"budget": cubic_budget(self.step, self.phases, self.budget.start, self.budget.end)}

    def parameters(self) -> list[nn.Parameter]:
        return [layer.own_parameter(name) for layer in self.layers.values() for name in self.rules.tensors]

    def observe(self, grad_scale: Tensor | None) -> None:
        if self.regulariser is not None:
            self.regulariser.add_gradient(grad_scale)
        if self.rules.score_at == "before_step":
            self._score(grad_scale)

    def act(self) -> Sequence[Event]:
        if self.rules.score_at == "after_step":
            self._score(None)  # an optimizer that was handed the loss scale has taken it out of the gradients
        events = self._allocate() if self._is_due(self.step) else []
        held = self.allocated and (self.rules.mask == "hold" or self.step >= self.phases.finish)
        self._masked = held or bool(events)
        if self._masked:
            self._apply_masks()
        self.step += 1
        return events

    @torch.no_grad()
    def _score(self, grad_scale: Tensor | None) -> None:
        if self.step >= self.phases.finish:
            return  # the choice is fixed in the final phase
        parameters = self.parameters()
        if self.rules.score == "magnitude":
            self.signals = {i: local(parameters[i]).abs() for i in self._scored()}
            return
        indices = [i for i, p in enumerate(parameters) if p.grad is not None]
        weights = [local(parameters[i]) for i in indices]
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        if self.rules.score != "raw_sensitivity":
            self.importance.observe(indices, weights, gradients, grad_scale)
            return
        signals = raw_signal("sensitivity", weights, gradients)
        if grad_scale is not None and signals:
            torch._foreach_div_(signals, grad_scale)
        self.signals |= dict(zip(indices, signals, strict=True))

    def _scored(self) -> list[int]:
        """Positions of the tensors whose elements count."""
        names = self.rules.tensors * len(self.layers)
        return [i for i, name in enumerate(names) if name in self.rules.scored]

    def _is_due(self, step: int) -> bool:
        """Every ΔT steps while the budget falls, and once when the final phase begins."""
        deciding = self.phases.warmup < step < self.phases.finish and step % self.phases.every == 0
        return deciding or step == self.phases.finish

    def forecast(self) -> list[Forecast]:
        """b₀ − b(t) of the units are dead after step t; a budget in parameters says how many parameters that is."""
        units = Units(self._size(layer) for layer in self.layers.values() for _ in range(layer.rank))
        due = [step for step in range(self.step, self.phases.finish + 1) if self._is_due(step)]
        dead = {t: self.budget.start - cubic_budget(t, self.phases, self.budget.start, self.budget.end) for t in due}
        if self.budget.priced:
            return [Forecast(step, count, count, count) for step, count in dead.items()]
        return [units.stopped(step, count) for step, count in dead.items()]

    def _size(self, layer: LowRank) -> int:
        """Parameters of one unit."""
        return sum(layer.own_parameter(name).numel() // layer.rank for name in self.rules.tensors)

    @torch.no_grad()
    def _allocate(self) -> list[Event]:
        scores = torch.cat(on_one_device(self._unit_scores()))
        budget = cubic_budget(self.step, self.phases, self.budget.start, self.budget.end)
        if not self.budget.priced:
            budget = min(budget, scores.numel())  # some may have been compacted away already
        masks = torch.split(self._kept(scores, budget), [layer.rank for layer in self.layers.values()])
        for layer, mask in zip(self.layers.values(), masks, strict=True):
            layer.live.copy_(mask)
        self.allocated = True
        penalty = torch.zeros(()) if self.regulariser is None else self.regulariser.value.clone()
        return [Allocated(self.step, budget, tuple(self.layers), masks, quantiles(scores), penalty)]

    def _kept(self, scores: Tensor, budget: int) -> Tensor:
        if self.budget.priced:
            costs = self.budget.costs
            each = [torch.full((a.rank,), costs[n], device=scores.device) for n, a in self.layers.items()]
            return keep_affordable(scores, torch.cat(each), budget, prices=len(set(costs.values())))
        keep = keep_top if self.rules.ties == "exact" else keep_above
        return keep(scores, budget)

    def _unit_scores(self) -> list[Tensor]:
        """S (r,) of each layer."""
        parameters, scored = self.parameters(), self._scored()
        layers, names = list(self.layers.values()), self.rules.tensors
        dims = [layers[i // len(names)].rank_dims[names[i % len(names)]] for i in scored]
        held = [parameters[i] for i in scored]
        elements = (self._element_scores(i, parameters[i]) for i in scored)  # one at a time: together they are large
        means = rank_means(elements, held, dims)
        of_layer = len(self.rules.scored)
        return [_sum(means[k : k + of_layer]) for k in range(0, len(means), of_layer)]

    def _element_scores(self, index: int, parameter: Tensor) -> Tensor:
        if self.rules.score in ("raw_sensitivity", "magnitude"):
            return self.signals.get(index, torch.zeros_like(local(parameter)))
        if self.rules.score == "sensitivity":
            return self.importance.mean[index]
        return self.importance.score(index)

    @torch.no_grad()
    def _apply_masks(self) -> None:
        for parameter, mask in self._masks():
            local(parameter).mul_(mask)

    def _masks(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each tensor that is set to 0, and which elements live, of what this process holds of it."""
        masks = []
        for layer in self.layers.values():
            for name in self.rules.zeroed:
                parameter = layer.own_parameter(name)
                mask = layer.live if parameter.ndim == 1 else layer.live.unsqueeze(1 - layer.rank_dims[name])
                masks.append((parameter, part(mask.expand(parameter.shape), parameter)))
        return masks

    def restarted(self) -> Sequence[tuple[nn.Parameter, Tensor]]:
        return self._masks() if self.rules.reset_moments and self._masked else []

    def keep(self, kept: Mapping[str, Tensor]) -> None:
        for k, (name, layer) in enumerate(self.layers.items()):
            for j, tensor in enumerate(self.rules.tensors if name in kept else ()):
                i, dim = len(self.rules.tensors) * k + j, layer.rank_dims[tensor]
                self.importance.keep(i, dim, kept[name])
                if i in self.signals:
                    self.signals[i] = self.signals[i].index_select(dim, kept[name])

    def state_dict(self) -> dict[str, Any]:
        signals = {f"signal.{i}": t for i, t in self.signals.items()}
        numbers = {"step": self.step, "allocated": self.allocated, "start": self.budget.start}
        tensors = whole_state(self.importance.state_dict() | signals, self._like())
        return {"tensors": tensors, "numbers": numbers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        tensors = own_state(state["tensors"], self._like())
        self.importance.load_state_dict(tensors)
        prefix = "signal."
        signals = {int(n.removeprefix(prefix)): t for n, t in tensors.items() if n.startswith(prefix)}
        parameters = self.parameters()
        self.signals = {i: signal.to(parameters[i].device) for i, signal in signals.items()}
        self.step = state["numbers"]["step"]
        self.allocated = state["numbers"]["allocated"]

    def _like(self) -> dict[str, Tensor]:
        """The parameter that each saved tensor is laid out as."""
        kinds = ("mean", "uncertainty", "signal")
        return {f"{kind}.{i}": p for i, p in enumerate(self.parameters()) for kind in kinds}


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
