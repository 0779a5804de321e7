"""One file per method; adding one is a file and a line here."""

from rankwise.adapter import Method
from rankwise.methods.adalora import AdaLoRA
from rankwise.methods.aflora import AFLoRA
from rankwise.methods.freezing_adalora import FreezingAdaLoRA
from rankwise.methods.lora import LoRA
from rankwise.methods.presets import PRESETS, preset
from rankwise.methods.pruned_lora import PrunedLoRA
from rankwise.methods.sora import SoRA
from rankwise.methods.svd_lora import SVDLoRA
from rankwise.methods.vera import VeRA

__all__ = [
    "METHODS",
    "PRESETS",
    "AFLoRA",
    "AdaLoRA",
    "FreezingAdaLoRA",
    "LoRA",
    "PrunedLoRA",
    "SVDLoRA",
    "SoRA",
    "VeRA",
    "preset",
]

METHODS: dict[str, type[Method]] = {
    m.name: m
    for m in (
        LoRA,
        SVDLoRA,
        AdaLoRA,
        PrunedLoRA,
        AFLoRA,
        FreezingAdaLoRA,
        VeRA,
        SoRA,
    )
}
