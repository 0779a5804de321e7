"""AFLoRA:  Δ = diag(s_b) B diag(s_d) A    A (r, d_in), s_d (r,), B (d_out, r), s_b (d_out,)  (Liu et al., 2024, eq. 1).

All four train at first. Every projection matrix, each A and each B on its own, has the score

    mean_ij Ī · Ū     of I = |∂L/∂w|, averaged over windows of ΔT steps

and at step t the lowest-scoring share r(t) of them is frozen, r(t) = 1 − u³. What is frozen stays frozen and holds no
gradient and no optimizer moments; s_d and s_b train to the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from rankwise.adapter import LowRank
from rankwise.allocation.importance import Signal
from rankwise.allocation.schedule import Phases, Span, parse_span, steps_of
from rankwise.base_layers import device_of, sizes
from rankwise.errors import ConfigError
from rankwise.low_rank_op import Factors
from rankwise.methods.freezing import FreezingController, FreezingRules
from rankwise.methods.low_rank import LowRankMethod
from rankwise.plain import Plain
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

    @torch.no_grad()
    def take_over(self, update: Plain) -> None:
        self.A[: update.rank], self.B[:, : update.rank] = update.down, update.up
        self.s_d.zero_()[: update.rank] = 1.0
        self.s_b.fill_(1.0)


@dataclass(frozen=True, kw_only=True)
class AFLoRA(LowRankMethod):
    """Low-rank adaptation that freezes each projection when it has stopped learning."""

    name: ClassVar[str] = "aflora"
    learning_rate: ClassVar[float] = 1e-2

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
    freeze_rule: Literal["count", "elementwise_quantile", "never"] = "count"
    """Freeze the lowest share by count, or what lies below an element-wise quantile (published code), or nothing."""
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
        return cls(**{"warmup": "1 epoch", "cooldown": 0.7, **settings})

    @property
    def decides_while_training(self) -> bool:
        return self.scope != "none" and self.freeze_rule != "never"

    def build(self, base: nn.Module, site: Site) -> AFLoRALayer:
        return AFLoRALayer(base, self.initial_rank(site.name), self, self.scope in ("all", site.role))

    def controller(
        self, adapters: Mapping[str, LowRank], total_steps: int, steps_per_epoch: int | None
    ) -> "FreezingController | None":
        if self.freeze_rule == "never" or self.scope == "none":
            return None
        spans = {"warmup": self.warmup, "cooldown": self.cooldown, "every": self.every}
        warmup, cooldown, every = (steps_of(s, n, total_steps, steps_per_epoch) for n, s in spans.items())
        phases = Phases(total_steps, warmup, cooldown, every)
        layers = {n: a for n, a in adapters.items() if isinstance(a, AFLoRALayer)}
        projections: dict[str, tuple[LowRank, str]] = {
            f"{n}.{m}": (a, m) for n, a in layers.items() for m in ("A", "B") if a.projections_train
        }
        if not projections:
            raise ConfigError(
                f"scope={self.scope!r}: none of the adapted layers is of that kind, so nothing can freeze."
            )
        rules = FreezingRules(self.signal, self.freeze_rule, self.freeze_batches, self.beta1, self.beta2)
        return FreezingController(projections, rules, phases)
