"""SoRA:  Δ = (α/r) B diag(g) A     B (d_out, r) starts at 0, g (r,), A (r, d_in) at random     (Ding et al., 2023).

After every step of the optimizer the gate takes the proximal step of an L1 penalty, the soft threshold

    g_i ← sign(g_i) · max(|g_i| − ξ, 0)

so that gates which the loss does not hold open close at exactly 0. ξ is not multiplied by the learning rate.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rankwise.adapter import LowRank
from rankwise.allocation.history import Closed, Event
from rankwise.allocation.schedule import staircase
from rankwise.base_layers import device_of, sizes
from rankwise.controller import Controller
from rankwise.distributed import gather, local
from rankwise.errors import ConfigError
from rankwise.low_rank_op import Factors
from rankwise.methods.low_rank import LowRankMethod, check_alpha
from rankwise.methods.settings import is_count
from rankwise.plain import Plain
from rankwise.targets import Site


class SoRALayer(LowRank):
    """Trains A, B and the gate g."""

    rank_dims: ClassVar[Mapping[str, int]] = {"A": 0, "g": 0, "B": 1}

    def __init__(self, base: nn.Module, rank: int, settings: "SoRA") -> None:
        device = device_of(base)
        super().__init__(base, rank, settings.dropout, device)
        d_in, d_out = sizes(base)
        self.scale = settings.alpha / rank
        self.A = nn.Parameter(torch.empty(rank, d_in, device=device))
        self.g = nn.Parameter(torch.randn(rank, device=device))
        self.B = nn.Parameter(torch.zeros(d_out, rank, device=device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # U(±1/√d_in)

    def factors(self) -> Factors:
        return Factors(self.B, self.A, gate=self.g, scale=self.scale)

    @torch.no_grad()
    def take_over(self, update: Plain) -> None:
        """With gates of 1, the spread with which they start; further ranks keep a random one, and have no B yet."""
        self.A[: update.rank] = update.down
        self.g[: update.rank] = 1.0
        self.B.zero_()[:, : update.rank] = update.up / self.scale


@dataclass(frozen=True, kw_only=True)
class SoRA(LowRankMethod):
    """Low-rank adaptation with a gate on every rank, which a soft threshold closes."""

    name: ClassVar[str] = "sora"

    alpha: float = 16.0
    """The update is scaled by alpha/rank, with the initial rank, for ever."""
    threshold: float = 3e-4
    """ξ, what a gate loses at every optimizer step; the largest ξ if there are several stages."""
    stages: int = 1
    """In how many equal parts of the run ξ rises evenly, from 0 to `threshold`; 1: it is `threshold` throughout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(self.alpha)
        if not (self.threshold > 0 and math.isfinite(self.threshold)):
            raise ConfigError(f"threshold={self.threshold} closes no gate. The paper takes 3e-4; LoRA has no gates.")
        if not is_count(self.stages):
            raise ConfigError(f"stages={self.stages!r} must be a whole number of at least 1; the paper takes 7.")

    @property
    def decides_while_training(self) -> bool:
        return True

    def build(self, base: nn.Module, site: Site) -> SoRALayer:
        return SoRALayer(base, self.initial_rank(site.name), self)

    def controller(
        self, adapters: Mapping[str, LowRank], total_steps: int, steps_per_epoch: int | None
    ) -> "ThresholdController":
        if total_steps < self.stages:
            raise ConfigError(f"stages={self.stages} do not fit into total_steps={total_steps}; take fewer.")
        layers = {n: a for n, a in adapters.items() if isinstance(a, SoRALayer)}
        return ThresholdController(layers, self, total_steps)


class ThresholdController(Controller):
    """Takes the proximal step of every gate after each step of the optimizer."""

    def __init__(self, layers: Mapping[str, SoRALayer], settings: SoRA, total_steps: int) -> None:
        self.layers, self.settings, self.total = dict(layers), settings, total_steps

    @property
    def settled(self) -> bool:
        """Gates may close until the end; from here on at least ξ stays."""
        return self.step >= self.total - self.total // self.settings.stages

    def summary(self) -> dict[str, float]:
        return {"threshold": self._threshold()}

    def parameters(self) -> list[nn.Parameter]:
        return [layer.g for layer in self.layers.values()]

    def observe(self, grad_scale: Tensor | None) -> None:
        """Nothing is scored."""

    @torch.no_grad()
    def act(self) -> Sequence[Event]:
        threshold = self._threshold()
        gates = self.parameters()
        moved = [gate for gate in gates if gate.grad is not None]  # the others took no step that this could be part of
        for gate in map(local, moved if threshold else ()):
            gate.copy_(torch.nn.functional.softshrink(gate, threshold))
        whole = gather([local(gate) for gate in gates], gates)
        masks = tuple(gate != 0 for gate in whole)
        for layer, mask in zip(self.layers.values(), masks, strict=True):
            layer.live.copy_(mask)
        self.step += 1
        every = max(1, self.total // 200)
        if (self.step - 1) % every and self.step != self.total:
            return []
        return [Closed(self.step - 1, threshold, tuple(self.layers), masks)]

    def _threshold(self) -> float:
        return staircase(self.step, self.total, self.settings.stages, self.settings.threshold)

    def keep(self, kept: Mapping[str, Tensor]) -> None:
        """A gate has no state but itself."""

    def state_dict(self) -> dict[str, Any]:
        return {"tensors": {}, "numbers": {"step": self.step}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["numbers"]["step"]
