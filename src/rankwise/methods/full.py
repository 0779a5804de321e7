"""Full fine-tuning:  W ← W + Δ     for every parameter W of the model, Δ of any rank."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from rankwise.base_layers import is_packed
from rankwise.errors import TargetError
from rankwise.methods.installing import TuningMethod
from rankwise.targets import ModelView


@dataclass(frozen=True, kw_only=True)
class FullFineTuning(TuningMethod):
    """Every parameter trains."""

    name: ClassVar[str] = "full"
    learning_rate: ClassVar[float] = 5e-5

    def tuned(self, view: ModelView) -> dict[str, nn.Parameter]:
        packed = [name for name, module in view.linears().items() if is_packed(module)]
        if packed:
            raise TargetError(
                f"{self.name} trains every weight, and {len(packed)} of them are quantised, {packed[0]} first: those "
                "cannot move by small steps. Load the model unquantised, or adapt it with a low-rank method."
            )
        return {name: p for name, p in view.model.named_parameters() if p.is_floating_point()}
