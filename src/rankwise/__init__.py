"""Adaptive low-rank fine-tuning: LoRA, AdaLoRA, AFLoRA and relatives on one engine, with their baselines."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rankwise.adaptation import Adaptation
from rankwise.adapting import adapt, load
from rankwise.allocation.schedule import epochs
from rankwise.bank import Bank
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
from rankwise.io.loralib import Loralib
from rankwise.methods import (
    METHODS,
    PRESETS,
    AdaLoRA,
    AdapterDrop,
    AFLoRA,
    BitFit,
    FreezingAdaLoRA,
    FullFineTuning,
    HoulsbyAdapter,
    LinAdapter,
    LoRA,
    PfeifferAdapter,
    PrefixEmbedding,
    PrefixLayer,
    PrunedLoRA,
    SoRA,
    SVDLoRA,
    TopBlocks,
    VeRA,
    preset,
)
from rankwise.surgery import across_ranks

if TYPE_CHECKING:
    from rankwise.planning.plan import Plan
    from rankwise.planning.planner import plan
    from rankwise.train.callback import AdaptationCallback

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "PRESETS",
    "AFLoRA",
    "AdaLoRA",
    "Adaptation",
    "AdaptationCallback",
    "AdapterDrop",
    "Bank",
    "BitFit",
    "ConfigError",
    "DataError",
    "FolderError",
    "FreezingAdaLoRA",
    "FullFineTuning",
    "HoulsbyAdapter",
    "LinAdapter",
    "LoRA",
    "Loralib",
    "NonFiniteError",
    "PfeifferAdapter",
    "Plan",
    "PrefixEmbedding",
    "PrefixLayer",
    "PrunedLoRA",
    "RankwiseError",
    "SVDLoRA",
    "ScheduleError",
    "SoRA",
    "StateError",
    "TargetError",
    "TopBlocks",
    "VeRA",
    "across_ranks",
    "adapt",
    "epochs",
    "load",
    "plan",
    "preset",
]


# these need transformers, which takes seconds to import
_LAZY = {
    "AdaptationCallback": "rankwise.train.callback",
    "Plan": "rankwise.planning.plan",
    "plan": "rankwise.planning.planner",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
