"""What keeps the vectors of an update apart: a penalty γ R, whose gradient is added right before the optimizer steps.

Once per optimizer step, after any clipping and at face value; the loss that is reported stays the task's own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankwise.adapter import LowRank
from rankwise.allocation.cosine import cosine
from rankwise.allocation.gram import add_products_, grams
from rankwise.allocation.history import Event
from rankwise.allocation.orthogonality import orthogonality
from rankwise.controller import Controller
from rankwise.distributed import Vectors

Form = Literal["mean_norm", "sum_of_squares", "cosine"]


class Regulariser:
    """γ R over the named tensors of the layers, one vector for each rank; `value` is R at the last step."""

    def __init__(self, layers: Sequence[LowRank], names: Sequence[str], form: Form, weight: float) -> None:
        self.layers, self.names = layers, names
        self.form, self.weight = form, weight
        self.value = torch.zeros(())

    @torch.no_grad()
    def add_gradient(self, grad_scale: Tensor | None) -> None:
        """g ← g + γ ∂R/∂w, times the loss scale if the gradients still carry it. Frozen tensors take none, and nor do
        layers that this step did not use.
        """
        if not self.weight:
            return
        used, pairs = 0, []
        for layer in self.layers:
            own = [(layer.own_parameter(n), n) for n in self.names]
            used += any(p.grad is not None for p, _ in own)
            pairs += [(p, layer.rank_dims[n]) for p, n in own if p.grad is not None and layer.trains(n)]
        if not pairs:
            return
        vectors = Vectors([p for p, _ in pairs], [dim for _, dim in pairs])
        G = vectors.total(grams(vectors.rows))
        self.value, multipliers = cosine(G) if self.form == "cosine" else orthogonality(G, self.form)
        factor = self.weight * (1.0 if grad_scale is None else grad_scale)
        if self.form != "sum_of_squares":  # the mean is over the matrices of all layers used, frozen ones too
            factor = factor * (len(pairs) / (used * len(self.names)))
        torch._foreach_mul_(multipliers, factor)
        add_products_(vectors.gradients(), vectors.own(multipliers), vectors.rows)


class RegularisingController(Controller):
    """Adds the penalty's gradient at every step, and decides nothing."""

    def __init__(self, regulariser: Regulariser) -> None:
        self.regulariser = regulariser

    def observe(self, grad_scale: Tensor | None) -> None:
        self.regulariser.add_gradient(grad_scale)

    def act(self) -> Sequence[Event]:
        self.step += 1
        return []

    @property
    def settled(self) -> bool:
        return True

    def summary(self) -> dict[str, float]:
        return {}

    def parameters(self) -> list[nn.Parameter]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"tensors": {}, "numbers": {"step": self.step}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["numbers"]["step"]
