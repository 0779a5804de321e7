"""One file per method; adding one is a file and a line here."""

from rankwise.adapter import Method
from rankwise.methods.adalora import AdaLoRA
from rankwise.methods.adapter_drop import AdapterDrop
from rankwise.methods.aflora import AFLoRA
from rankwise.methods.bitfit import BitFit
from rankwise.methods.freezing_adalora import FreezingAdaLoRA
from rankwise.methods.full import FullFineTuning
from rankwise.methods.houlsby import HoulsbyAdapter
from rankwise.methods.lin import LinAdapter
from rankwise.methods.lora import LoRA
from rankwise.methods.pfeiffer import PfeifferAdapter
from rankwise.methods.prefix_embedding import PrefixEmbedding
from rankwise.methods.prefix_layer import PrefixLayer
from rankwise.methods.presets import PRESETS, preset
from rankwise.methods.pruned_lora import PrunedLoRA
from rankwise.methods.sora import SoRA
from rankwise.methods.svd_lora import SVDLoRA
from rankwise.methods.top_blocks import TopBlocks
from rankwise.methods.vera import VeRA

__all__ = [
    "METHODS",
    "PRESETS",
    "AFLoRA",
    "AdaLoRA",
    "AdapterDrop",
    "BitFit",
    "FreezingAdaLoRA",
    "FullFineTuning",
    "HoulsbyAdapter",
    "LinAdapter",
    "LoRA",
    "PfeifferAdapter",
    "PrefixEmbedding",
    "PrefixLayer",
    "PrunedLoRA",
    "SVDLoRA",
    "SoRA",
    "TopBlocks",
    "VeRA",
    "preset",
]

METHODS: dict[str, type[Method]] = {
    m.name: m
    for m in (
        *(LoRA, SVDLoRA, AdaLoRA, PrunedLoRA, AFLoRA, FreezingAdaLoRA, VeRA, SoRA),
        *(FullFineTuning, TopBlocks, BitFit),
        *(HoulsbyAdapter, PfeifferAdapter, LinAdapter, AdapterDrop),
        *(PrefixEmbedding, PrefixLayer),
    )
}
