"""Lin adapter, Adapter^L:  y ← y + f(LN(y))     y (…, d) a block's output, LN new and trained (Lin et al., 2020)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.methods.bottleneck import Bottleneck, BottleneckMethod, first_of, in_every_block, with_first
from rankwise.methods.installing import Placed
from rankwise.places import Stack
from rankwise.targets import ModelView


class NormedAdapter(Bottleneck):
    """Hangs in a block, with a LayerNorm of its own."""

    def __init__(self, settings: BottleneckMethod, width: int, block: nn.Module) -> None:
        super().__init__(settings, width, block)
        self.norm = nn.LayerNorm(width, device=self.up.weight.device)

    def attach(self, place: nn.Module) -> list[RemovableHandle]:
        return [place.register_forward_hook(self._add, prepend=True)]

    def _add(self, place: nn.Module, given: Any, output: Any) -> Any:
        if not self.active:
            return None
        y = first_of(output)
        return with_first(output, y + self.f(self._normed(y)))

    def _normed(self, y: Tensor) -> Tensor:
        norm = self.norm
        return F.layer_norm(y, norm.normalized_shape, norm.weight.to(y.dtype), norm.bias.to(y.dtype), norm.eps)


@dataclass(frozen=True, kw_only=True)
class LinAdapter(BottleneckMethod):
    """One bottleneck adapter with a norm of its own behind each block."""

    name: ClassVar[str] = "lin"

    init_std: float = 0.02
    """Standard deviation of the normal start."""

    def parts(self, view: ModelView) -> list[Placed]:
        def of_block(block: nn.Module, stack: Stack, width: int) -> dict[str, Bottleneck]:
            return {"": NormedAdapter(self, width, block)}

        return in_every_block(view, self, of_block)
