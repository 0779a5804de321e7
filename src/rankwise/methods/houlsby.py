"""Houlsby adapter:  s ← s + f(s)     s (…, d) a sub-layer's output, before residual and norm (Houlsby et al., 2019)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from rankwise.methods.bottleneck import Bottleneck, BottleneckMethod, OutputAdapter, in_every_block
from rankwise.methods.installing import Placed
from rankwise.places import Stack
from rankwise.targets import ModelView


@dataclass(frozen=True, kw_only=True)
class HoulsbyAdapter(BottleneckMethod):
    """Bottleneck adapters behind every attention and feed-forward sub-layer."""

    name: ClassVar[str] = "houlsby"

    activation: Literal["relu", "gelu", "silu"] = "gelu"
    """Between the two matrices."""

    def parts(self, view: ModelView) -> list[Placed]:
        def of_block(block: nn.Module, stack: Stack, width: int) -> dict[str, Bottleneck]:
            return {name: OutputAdapter(self, width, block) for name in stack.sublayers}

        return in_every_block(view, self, of_block)
