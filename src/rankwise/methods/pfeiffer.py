"""Pfeiffer adapter:  y = LN(s + x),  out = LN(s + x + f(y))     s (…, d) the feed-forward's output, x its input
(Pfeiffer et al., 2021): the same LN twice, and the skip from before it. Where no LN follows, it is left out of both."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.methods.bottleneck import Bottleneck, BottleneckMethod, OutputAdapter, in_every_block
from rankwise.methods.installing import Placed
from rankwise.places import Stack
from rankwise.targets import ModelView


class NormAdapter(Bottleneck):
    """Hangs in the LayerNorm: its input is s + x, its output y."""

    def attach(self, place: nn.Module) -> list[RemovableHandle]:
        return [place.register_forward_hook(self._again, prepend=True)]

    def _again(self, place: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        if not self.active:
            return None
        out: Tensor = place.forward(given[0] + self.f(y))  # not called, for that would come here again
        return out


def feed_forward_adapters(view: ModelView, settings: BottleneckMethod) -> list[Placed]:
    """One adapter for each block, in the LayerNorm behind its feed-forward; without one, in the block itself."""

    def of_block(block: nn.Module, stack: Stack, width: int) -> dict[str, Bottleneck]:
        if stack.norm_after is None:
            return {"": OutputAdapter(settings, width, block)}
        return {stack.norm_after: NormAdapter(settings, width, block)}

    return in_every_block(view, settings, of_block)


@dataclass(frozen=True, kw_only=True)
class PfeifferAdapter(BottleneckMethod):
    """One bottleneck adapter in each block, at its feed-forward."""

    name: ClassVar[str] = "pfeiffer"

    init_std: float = 0.02
    """Standard deviation of the normal start."""

    def parts(self, view: ModelView) -> list[Placed]:
        return feed_forward_adapters(view, self)
