"""Freezing of whole projections, by how much they still learn. Each has the score

    mean_ij Ī · Ū     of I = |∂L/∂w|, averaged over windows of ΔT steps     (AFLoRA)

and at step t the lowest-scoring share r(t) = 1 − u³ of them is frozen, for good.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankwise.adapter import LowRank
from rankwise.allocation.forecast import Forecast, Units
from rankwise.allocation.history import Event, Froze, quantiles
from rankwise.allocation.importance import Importance, Signal, raw_signal
from rankwise.allocation.schedule import Phases, frozen_share
from rankwise.allocation.selection import below_quantile, lowest
from rankwise.controller import Controller
from rankwise.distributed import gather, local, means, on_one_device, own_state, whole_state


@dataclass(frozen=True)
class FreezingRules:
    """How projections are scored, and which of them freeze."""

    signal: Signal = "gradient"
    rule: Literal["count", "elementwise_quantile"] = "count"
    batches: int | None = None  # at how many moments, at most
    beta1: float = 0.85
    beta2: float = 0.95


class FreezingController(Controller):
    """Scores projections once per window and freezes the lowest-scoring share of them."""

    def __init__(self, projections: Mapping[str, tuple[LowRank, str]], rules: FreezingRules, phases: Phases) -> None:
        self.projections, self.rules, self.phases = dict(projections), rules, phases
        held = [local(p.detach()) for p in self.parameters()]
        self.importance = Importance(held, rules.beta1, rules.beta2)
        self.window = [torch.zeros_like(p) for p in held]  # J, running mean of I over the window
        self.seen = [0] * len(self.projections)  # how many I are in J
        self.frozen: set[int] = set()  # positions

    @property
    def settled(self) -> bool:
        return len(self.frozen) == len(self.projections)

    def summary(self) -> dict[str, float]:
        return {"frozen": len(self.frozen) / len(self.projections)}

    def parameters(self) -> list[nn.Parameter]:
        return [layer.own_parameter(name) for layer, name in self.projections.values()]

    def stopped(self) -> list[nn.Parameter]:
        parameters = self.parameters() if self.frozen else []
        return [parameters[i] for i in self.frozen]

    @torch.no_grad()
    def observe(self, grad_scale: Tensor | None) -> None:
        """Every ΔT steps the window closes: Ī and Ū take J, the mean of I over its steps that had a gradient."""
        parameters = self.parameters()
        if self.step % self.phases.every == 0:
            closing = [i for i in range(len(parameters)) if i not in self.frozen and self.seen[i]]
            self.importance.update(closing, [self.window[i] for i in closing])
            self.seen = [0] * len(parameters)
        indices = [i for i, p in enumerate(parameters) if i not in self.frozen and p.grad is not None]
        weights = [parameters[i] for i in indices]
        gradients = [local(p.grad) for p in weights if p.grad is not None]
        signals = raw_signal(self.rules.signal, [local(p) for p in weights], gradients)
        if grad_scale is not None and signals:
            torch._foreach_div_(signals, grad_scale)
        for i, signal in zip(indices, signals, strict=True):
            n = self.seen[i]
            self.window[i] = (self.window[i] * n + signal) / (n + 1)
            self.seen[i] += 1

    def act(self) -> Sequence[Event]:
        events = self._freeze() if self._is_due(self.step) and not self.settled else []
        self.step += 1
        return events

    @property
    def rebuilds(self) -> int:
        moments = sum(self._is_due(step) for step in range(self.step, self.phases.finish + 1))
        return min(moments, len(self.projections) - len(self.frozen))  # a moment freezes one, or nothing changes

    def _is_due(self, step: int) -> bool:
        if step <= self.phases.warmup:
            return False
        if step >= self.phases.finish:
            return True
        if self.rules.batches is None:
            return step % self.phases.every == 0
        # n moments: n − 1 evenly inside the deciding phase, the last at its end
        stride = (self.phases.finish - self.phases.warmup) / self.rules.batches
        position = step - self.phases.warmup
        return int(position / stride) > int((position - 1) / stride)

    def forecast(self) -> list[Forecast]:
        """The share r(t) of the projections is frozen after step t. By the element-wise rule it can be any of them."""
        units = Units(p.numel() for p in self.parameters())
        due = [step for step in range(self.step, self.phases.finish + 1) if self._is_due(step)]
        forecasts = [units.stopped(step, frozen_share(step, self.phases) * len(units)) for step in due]
        if self.rules.rule == "count":
            return forecasts
        return [f if f.least == units.total else f._replace(least=0, most=units.total) for f in forecasts]

    @torch.no_grad()
    def _freeze(self) -> list[Event]:
        training = [i for i in range(len(self.projections)) if i not in self.frozen]
        parameters = self.parameters()
        held = [parameters[i] for i in training]
        products = [self.importance.score(i) for i in training]
        scores = means(products, held) / self._alive(training)
        share = frozen_share(self.step, self.phases)
        if share == 1.0:
            chosen = list(range(len(training)))
        elif self.rules.rule == "count":
            chosen = lowest(scores, int(share * len(self.projections)) - len(self.frozen))
        else:
            chosen = below_quantile(gather(products, held), share)
        if not chosen:
            return []
        names = list(self.projections)
        for i in sorted(training[c] for c in chosen):
            self._freeze_one(i)
        frozen = tuple(names[training[c]] for c in sorted(chosen))
        return [Froze(self.step, len(self.frozen) / len(names), frozen, quantiles(scores))]

    def _alive(self, positions: Sequence[int]) -> Tensor:
        """(n,) share of the ranks that are alive: the dead ones learn nothing, and must not count as having stopped."""
        layers = list(self.projections.values())
        shares = [layers[i][0].live.float().mean() if layers[i][0].rank else torch.ones(()) for i in positions]
        return torch.stack(on_one_device(shares)).clamp_min(1e-6)

    def _freeze_one(self, index: int) -> None:
        layer, name = list(self.projections.values())[index]
        layer.freeze(name)
        self.frozen.add(index)
        # its state decides nothing any more
        self.window[index] = self.importance.mean[index] = self.importance.uncertainty[index] = torch.empty(0)

    def keep(self, kept: Mapping[str, Tensor]) -> None:
        for i, (name, (layer, tensor)) in enumerate(self.projections.items()):
            ranks = kept.get(name.removesuffix(f".{tensor}"))
            if ranks is not None and i not in self.frozen:
                dim = layer.rank_dims[tensor]
                self.importance.keep(i, dim, ranks)
                self.window[i] = self.window[i].index_select(dim, ranks)

    def state_dict(self) -> dict[str, Any]:
        window = {f"window.{i}": t for i, t in enumerate(self.window)}
        numbers = {"step": self.step, "frozen": sorted(self.frozen), "seen": list(self.seen)}
        tensors = whole_state(self.importance.state_dict() | window, self._like())
        return {"tensors": tensors, "numbers": numbers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.seen = state["numbers"]["step"], list(state["numbers"]["seen"])
        for i in state["numbers"]["frozen"]:
            self._freeze_one(i)
        tensors = own_state(state["tensors"], self._like())
        self.importance.load_state_dict(tensors)
        self.window = [tensors[f"window.{i}"].to(p.device) for i, p in enumerate(self.parameters())]

    def _like(self) -> dict[str, Tensor]:
        """The projection that each saved tensor is laid out as; of the frozen ones nothing is left to save."""
        training = [(i, p) for i, p in enumerate(self.parameters()) if i not in self.frozen]
        return {f"{kind}.{i}": p for i, p in training for kind in ("mean", "uncertainty", "window")}
