"""AdapterDrop:  Pfeiffer adapters in all blocks but the lowest n, so that nothing is to be done below block n
(Rücklé et al., 2021). n is fixed; or, made robust to any n, drawn anew for each batch, n ~ U{0, …, drop}."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from rankwise.errors import ConfigError, TargetError
from rankwise.methods.bottleneck import Bottleneck, BottleneckMethod
from rankwise.methods.installing import Placed
from rankwise.methods.pfeiffer import feed_forward_adapters
from rankwise.part import Part
from rankwise.targets import ModelView


class Drop(Part):
    """Hangs in the backbone, and before each batch says which adapters are left out of it."""

    label: ClassVar[str] = "adapter_drop"

    def __init__(self, adapters: Sequence[Bottleneck], most: int, in_evaluation: int) -> None:
        super().__init__()
        self._adapters = tuple(adapters)  # lowest block first; in a tuple, for they hang in places of their own
        self.most, self.in_evaluation = most, in_evaluation

    def attach(self, place: nn.Module) -> list[RemovableHandle]:
        return [place.register_forward_pre_hook(self._draw)]

    def _draw(self, place: nn.Module, given: Any) -> None:
        # from the CPU's generator: no waiting for a device, and a checkpoint holds its state
        n = int(torch.randint(self.most + 1, ())) if self.training else self.in_evaluation
        for number, adapter in enumerate(self._adapters):
            adapter.skipped = number < n


@dataclass(frozen=True, kw_only=True)
class AdapterDrop(BottleneckMethod):
    """Pfeiffer adapters that the lowest blocks go without."""

    name: ClassVar[str] = "adapter-drop"

    init_std: float = 0.02
    """Standard deviation of the normal start."""
    drop: int = 5
    """n: how many of the lowest blocks go without; with `random`, the most that a batch leaves out."""
    random: bool = False
    """Draw n for each batch in training, from 0 to `drop`. Every block then has an adapter."""
    drop_in_evaluation: int = 0
    """With `random`: n outside of training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for setting, n in (("drop", self.drop), ("drop_in_evaluation", self.drop_in_evaluation)):
            if type(n) is not int or n < 0:
                raise ConfigError(f"{setting}={n!r}: it must be a whole number of blocks, 0 or more.")
        if self.drop_in_evaluation and not self.random:
            raise ConfigError(
                "drop_in_evaluation is for random=True; a fixed drop is the same in training and after it."
            )

    def parts(self, view: ModelView) -> list[Placed]:
        adapters = feed_forward_adapters(view, self)
        most = max(self.drop, self.drop_in_evaluation)
        if most >= len(adapters):
            raise TargetError(f"drop={most} would leave none of the model's {len(adapters)} blocks an adapter.")
        if not self.random:
            return adapters[self.drop :]
        bottlenecks = [placed.part for placed in adapters if isinstance(placed.part, Bottleneck)]
        drop = Drop(bottlenecks, self.drop, self.drop_in_evaluation)
        return [*adapters, Placed(view.names[id(view.backbone)], view.backbone, drop)]
