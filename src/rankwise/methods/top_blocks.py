"""Top blocks:  W ← W + Δ     for every parameter W of the highest blocks     (FT-Top2: Li & Liang, 2021)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from rankwise.base_layers import is_packed
from rankwise.errors import ConfigError, TargetError
from rankwise.methods.installing import TuningMethod
from rankwise.methods.settings import is_count
from rankwise.places import blocks_in, stacks_of
from rankwise.targets import ModelView


@dataclass(frozen=True, kw_only=True)
class TopBlocks(TuningMethod):
    """The highest blocks train in full; of an encoder-decoder, those of the decoder."""

    name: ClassVar[str] = "top-blocks"
    learning_rate: ClassVar[float] = 1e-4

    blocks: int = 2
    """How many of the blocks train, counted from the last one."""

    def __post_init__(self) -> None:
        if not is_count(self.blocks):
            raise ConfigError(f"blocks={self.blocks!r}: it must be a whole number of blocks, 1 or more.")

    def tuned(self, view: ModelView) -> dict[str, nn.Parameter]:
        highest = stacks_of(view.model_type, self.name)[-1]
        blocks = blocks_in(view.backbone, highest)
        if self.blocks > len(blocks):
            raise TargetError(f"blocks={self.blocks} is more than the {len(blocks)} that the model has.")
        chosen = blocks[-self.blocks :]
        packed = [view.names[id(m)] for block in chosen for m in block.modules() if is_packed(m)]
        if packed:
            raise TargetError(
                f"{self.name} trains {packed[0]}, whose weight is quantised and cannot move by small steps. "
                "Leave the highest blocks out when quantising, or adapt the model with a low-rank method."
            )
        inside = {p for block in chosen for p in block.parameters()}
        return {name: p for name, p in view.model.named_parameters() if p in inside}
