"""AFLoRA:  Δ = diag(s_b) B diag(s_d) A    A (r, d_in), s_d (r,), B (d_out, r), s_b (d_out,)  (Liu et al., 2024, eq. 1).

All four train at first. Every projection matrix, each A and each B on its own, has the score

    mean_ij Ī · Ū     of I = |∂L/∂w|, averaged over windows of ΔT steps

and at step t the lowest-scoring share r(t) of them is frozen, r(t) = 1 − u³. What is frozen stays frozen and holds no
gradient and no optimizer moments; s_d and s_b train to the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rankwise.adapter import Controller, LowRank
from rankwise.allocation.history import Event, Froze, quantiles
from rankwise.allocation.importance import Importance, Signal, raw_signal
from rankwise.allocation.schedule import Epochs, Phases, Span, frozen_share, parse_span, steps_of
from rankwise.allocation.selection import below_quantile, lowest
from rankwise.base_layers import device_of, sizes
from rankwise.distributed import gather, local, means, own_state, whole_state
from rankwise.errors import ConfigError
from rankwise.low_rank_op import Factors
from rankwise.methods.low_rank import LowRankMethod
from rankwise.targets import Site

Scope = Literal["ffn", "attention", "all", "none"]


class AFLoRALayer(LowRank):
    """Trains s_d and s_b always, A and B until they are frozen."""

    rank_dims: ClassVar[Mapping[str, int]] = {"A": 0, "s_d": 0, "B": 1}

    def __init__(self, base: nn.Module, rank: int, settings: "AFLoRA", projections_train: bool) -> None:
        device = device_of(base)
        super().__init__(base, rank, settings.dropout, device)
        d_in, d_out = sizes(base)
        self.projections_train = projections_train  # at the start of a run, whatever has frozen since
        self.A = nn.Parameter(torch.empty(rank, d_in, device=device), requires_grad=projections_train)
        self.s_d = nn.Parameter(torch.full((rank,), settings.init_gate, device=device))
        self.B = nn.Parameter(torch.empty(d_out, rank, device=device), requires_grad=projections_train)
        self.s_b = nn.Parameter(torch.zeros(d_out, device=device))
        nn.init.kaiming_uniform_(self.A)  # U(±√(6/d_in))
        nn.init.kaiming_uniform_(self.B)  # U(±√(6/r))

    def factors(self) -> Factors:
        return Factors(self.B, self.A, gate=self.s_d, out=self.s_b)


@dataclass(frozen=True, kw_only=True)
class AFLoRA(LowRankMethod):
    """Low-rank adaptation that freezes each projection when it has stopped learning."""

    name: ClassVar[str] = "aflora"
    decides_while_training: ClassVar[bool] = True

    rank: int = 4
    """Number of ranks of each update."""
    scope: Scope = "ffn"
    """Whose projections train at the start; the others keep their random projections and train the vectors only."""
    warmup: Span = 0.1
    """t_i, steps before the first projection may freeze."""
    cooldown: Span = 0.7
    """t_f, steps at the end during which all projections are frozen."""
    every: Span = 10
    """ΔT, steps between freezing decisions, and the window over which gradients are averaged."""
    beta1: float = 0.85
    """Decay of the running mean Ī, once per window."""
    beta2: float = 0.95
    """Decay of the running uncertainty Ū, once per window."""
    signal: Signal = "gradient"
    """I = |g|, |w·g| ("sensitivity") or |g/w| ("relative_gradient")."""
    freeze_rule: Literal["count", "elementwise_quantile"] = "count"
    """Freeze the lowest share by count, or what lies below an element-wise quantile (published code)."""
    freeze_batches: int | None = None
    """Freeze at no more than this many moments, evenly spaced, so that a compiled model is rebuilt that often."""
    init_gate: float = 0.1
    """s_d at the start; s_b starts at 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for setting in ("beta1", "beta2"):
            if not 0 <= vars(self)[setting] < 1:
                raise ConfigError(f"{setting}={vars(self)[setting]} is the decay of a running mean: in [0, 1).")
        if self.freeze_batches is not None and self.freeze_batches < 1:
            raise ConfigError(f"freeze_batches={self.freeze_batches}: it takes at least one moment to freeze.")
        if self.init_gate == 0:
            raise ConfigError("init_gate=0 together with s_b=0 would never learn; the paper takes 0.1.")
        for setting in ("warmup", "cooldown", "every"):
            parse_span(vars(self)[setting], setting)

    @classmethod
    def paper(cls, **settings: Any) -> "AFLoRA":
        """The paper's own schedule: one epoch of warmup, the last 70 % frozen. Leaves no room below 4 epochs."""
        return cls(**{"warmup": Epochs(1), "cooldown": 0.7, **settings})

    def build(self, base: nn.Module, site: Site) -> AFLoRALayer:
        return AFLoRALayer(base, self.initial_rank(site.name), self, self.scope in ("all", site.role))

    def controller(
        self, adapters: Mapping[str, LowRank], total_steps: int, steps_per_epoch: int | None
    ) -> "FreezingController | None":
        if self.scope == "none":
            return None
        spans = {"warmup": self.warmup, "cooldown": self.cooldown, "every": self.every}
        warmup, cooldown, every = (steps_of(s, n, total_steps, steps_per_epoch) for n, s in spans.items())
        phases = Phases(total_steps, warmup, cooldown, every)
        layers = {n: a for n, a in adapters.items() if isinstance(a, AFLoRALayer)}
        projections = {f"{n}.{m}": (a, m) for n, a in layers.items() for m in ("A", "B") if a.projections_train}
        if not projections:
            raise ConfigError(
                f"scope={self.scope!r}: none of the adapted layers is of that kind, so nothing can freeze."
            )
        return FreezingController(projections, self, phases)


class FreezingController(Controller):
    """Scores projections once per window and freezes the lowest-scoring share of them."""

    def __init__(self, projections: Mapping[str, tuple[AFLoRALayer, str]], settings: AFLoRA, phases: Phases) -> None:
        self.projections, self.settings, self.phases = dict(projections), settings, phases
        held = [local(p.detach()) for p in self.parameters()]
        self.importance = Importance(held, settings.beta1, settings.beta2)
        self.window = [torch.zeros_like(p) for p in held]  # J, running mean of I over the window
        self.seen = [0] * len(self.projections)  # how many I are in J
        self.frozen: set[int] = set()  # positions

    @property
    def settled(self) -> bool:
        return len(self.frozen) == len(self.projections)

    def summary(self) -> dict[str, float]:
        return {"frozen": len(self.frozen) / len(self.projections)}

    def parameters(self) -> list[nn.Parameter]:
        return [layer.get_parameter(name) for layer, name in self.projections.values()]

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
        signals = raw_signal(self.settings.signal, [local(p) for p in weights], gradients)
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
        if self.settings.freeze_batches is None:
            return step % self.phases.every == 0
        # n moments: n − 1 evenly inside the deciding phase, the last at its end
        stride = (self.phases.finish - self.phases.warmup) / self.settings.freeze_batches
        position = step - self.phases.warmup
        return int(position / stride) > int((position - 1) / stride)

    @torch.no_grad()
    def _freeze(self) -> list[Event]:
        training = [i for i in range(len(self.projections)) if i not in self.frozen]
        parameters = self.parameters()
        held = [parameters[i] for i in training]
        products = [self.importance.score(i) for i in training]
        scores = means(products, held)
        share = frozen_share(self.step, self.phases)
        if share == 1.0:
            chosen = list(range(len(training)))
        elif self.settings.freeze_rule == "count":
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

    def _freeze_one(self, index: int) -> None:
        layer, name = list(self.projections.values())[index]
        layer.freeze(name)
        self.frozen.add(index)
        # its state decides nothing any more
        self.window[index] = self.importance.mean[index] = self.importance.uncertainty[index] = torch.empty(0)

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
