"""Adaptive low-rank fine-tuning: LoRA, AdaLoRA, AFLoRA and relatives on one engine."""

from typing import TYPE_CHECKING, Any

from rankwise.adaptation import Adaptation, adapt, load
from rankwise.allocation.schedule import epochs
from rankwise.errors import (
    ConfigError,
    DataError,
    FolderError,
    NonFiniteError,
    RankwiseError,
    ScheduleError,
    StateError,
    TargetError,
)
from rankwise.methods import (
    METHODS,
    PRESETS,
    AdaLoRA,
    AFLoRA,
    FreezingAdaLoRA,
    LoRA,
    PrunedLoRA,
    SoRA,
    SVDLoRA,
    VeRA,
    preset,
)
from rankwise.surgery import across_ranks

if TYPE_CHECKING:
    from rankwise.train.callback import AdaptationCallback

__version__ = "0.1.0.dev0"

__all__ = [
    "METHODS",
    "PRESETS",
    "AFLoRA",
    "AdaLoRA",
    "Adaptation",
    "AdaptationCallback",
    "ConfigError",
    "DataError",
    "FolderError",
    "FreezingAdaLoRA",
    "LoRA",
    "NonFiniteError",
    "PrunedLoRA",
    "RankwiseError",
    "SVDLoRA",
    "ScheduleError",
    "SoRA",
    "StateError",
    "TargetError",
    "VeRA",
    "across_ranks",
    "adapt",
    "epochs",
    "load",
    "preset",
]


def __getattr__(name: str) -> Any:
    # the callback needs transformers.Trainer, which takes seconds to import
    if name == "AdaptationCallback":
        from rankwise.train.callback import AdaptationCallback

        return AdaptationCallback
    raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
