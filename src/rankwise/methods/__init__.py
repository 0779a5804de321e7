"""One file per method; adding one is a file and a line here."""

from rankwise.adapter import Method
from rankwise.methods.adalora import AdaLoRA
from rankwise.methods.aflora import AFLoRA
from rankwise.methods.lora import LoRA
from rankwise.methods.vera import VeRA

__all__ = ["METHODS", "AFLoRA", "AdaLoRA", "LoRA", "VeRA"]

METHODS: dict[str, type[Method]] = {m.name: m for m in (LoRA, AdaLoRA, AFLoRA, VeRA)}
