"""Settings with a name: the ablations of the AdaLoRA and AFLoRA papers, and the papers' own schedules. A table."""

from collections.abc import Mapping
from typing import Any

from rankwise.adapter import Method
from rankwise.errors import ConfigError, nearest
from rankwise.methods.adalora import AdaLoRA
from rankwise.methods.aflora import AFLoRA
from rankwise.methods.lora import LoRA

_NEVER = {"freeze_rule": "never"}

PRESETS: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "lora/regularised": (LoRA, {"penalty": "cosine", "orthogonality": 0.1}),
    "adalora/paper": (
        AdaLoRA,
        {"penalty": "sum_of_squares", "orthogonality": 0.01, "score_at": "before_step", "every": 1},
    ),
    "adalora/no-orthogonality": (AdaLoRA, {"orthogonality": 0}),  # γ = 0
    "adalora/sensitivity": (AdaLoRA, {"score": "raw_sensitivity"}),  # s = I
    "adalora/smoothed-sensitivity": (AdaLoRA, {"score": "sensitivity"}),  # s = Ī, as old published code had it
    "adalora/magnitude": (AdaLoRA, {"score": "magnitude"}),  # S = |λ|
    "aflora/paper": (AFLoRA, {"warmup": "1 epoch", "cooldown": 0.7}),
    "aflora/frozen-projections": (AFLoRA, {"scope": "none"}),
    "aflora/trainable-projections": (AFLoRA, _NEVER),
    "aflora/adaptive-projections": (AFLoRA, {}),
    "aflora/ffn": (AFLoRA, {"scope": "ffn"}),
    "aflora/attention": (AFLoRA, {"scope": "attention"}),
    "aflora/all": (AFLoRA, {"scope": "all"}),
    "aflora/gradient": (AFLoRA, {"signal": "gradient"}),  # |g|
    "aflora/sensitivity": (AFLoRA, {"signal": "sensitivity"}),  # |w·g|
    "aflora/relative-gradient": (AFLoRA, {"signal": "relative_gradient"}),  # |g/w|
}


def preset(name: str, **settings: Any) -> Method:
    """The named settings, with `settings` over them: preset("adalora/magnitude", rank=6, target_rank=4)."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known are {sorted(PRESETS)}.{nearest(name, PRESETS)}")
    cls, known = PRESETS[name]
    return cls(**{**known, **settings})


def without_preset(method: Mapping[str, Any]) -> dict[str, Any]:
    """{"name": ..., settings}, with the method and all settings in place of a preset's name. Another name stays."""
    name = method["name"]
    if not isinstance(name, str) or name not in PRESETS:
        return dict(method)
    cls, known = PRESETS[name]
    return {**known, **method, "name": cls.name}
