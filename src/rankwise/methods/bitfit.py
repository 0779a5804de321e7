"""BitFit:  b ← b + δ     for every bias b of the backbone, those of its norms included     (Ben Zaken et al., 2022)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from rankwise.errors import TargetError
from rankwise.methods.installing import TuningMethod
from rankwise.targets import ModelView


@dataclass(frozen=True, kw_only=True)
class BitFit(TuningMethod):
    """The biases train."""

    name: ClassVar[str] = "bitfit"

    def tuned(self, view: ModelView) -> dict[str, nn.Parameter]:
        biases = {
            p
            for module in view.backbone.modules()
            for name, p in module.named_parameters(recurse=False)
            if name == "bias" or name.endswith("_bias")  # the parameter's own name: some attention has a q_bias
        }
        if not biases:
            raise TargetError(
                f"{self.name} trains biases, and the backbone of this {view.model_type or 'custom'} model has none. "
                "LoRA, LinAdapter or PrefixEmbedding train as few parameters."
            )
        return {name: p for name, p in view.model.named_parameters() if p in biases}
