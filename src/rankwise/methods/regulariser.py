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
from rankwise.allocation.importance import blocks
from rankwise.allocation.orthogonality import orthogonality
from rankwise.controller import Controller
from rankwise.distributed import Vectors, is_split

Form = Literal["mean_norm", "sum_of_squares", "cosine"]
Pairs = Sequence[tuple[nn.Parameter, int]]  # a tensor, and which of its dimensions is that of its ranks


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
        used = 0
        pairs: list[tuple[nn.Parameter, int]] = []
        for layer in self.layers:
            own = [(layer.own_parameter(n), n) for n in self.names]
            used += any(p.grad is not None for p in layer.own_parameters().values())  # λ trains to the end
            pairs += [(p, layer.rank_dims[n]) for p, n in own if p.grad is not None and layer.trains(n)]
        if not pairs:
            return
        factor = self.weight * (1.0 if grad_scale is None else grad_scale)
        terms = []
        for block in _blocks(pairs):
            # a mean is over the matrices of all layers used, frozen ones too; the value is one over those that train
            mean = self.form != "sum_of_squares"
            value = self._add(block, factor * (len(block) / (used * len(self.names)) if mean else 1))
            terms.append(value * (len(block) / len(pairs)) if mean else value)
        self.value = torch.stack([term.to(terms[0].device) for term in terms]).sum()

    def _add(self, pairs: Pairs, factor: float | Tensor) -> Tensor:
        """Add `factor` times the gradient of the penalty of these tensors alone, whose value is returned."""
        vectors = Vectors([p for p, _ in pairs], [dim for _, dim in pairs])
        G = vectors.total(grams(vectors.rows))
        value, multipliers = cosine(G) if self.form == "cosine" else orthogonality(G, self.form)
        torch._foreach_mul_(multipliers, factor)
        add_products_(vectors.gradients(), vectors.own(multipliers), vectors.rows)
        return value


def _blocks(pairs: Pairs) -> list[Pairs]:
    """The Gram matrices of a large model are never held all at once: at high ranks they are as large as the factors.

    Tensors split over processes stay together, for one exchange has to do for all of them.
    """
    if any(is_split(p) for p, _ in pairs):
        return [pairs]
    return [pairs[block.start : block.stop] for block in blocks([p for p, _ in pairs], 2**22)]


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

    def forecast(self) -> Sequence[Event]:
        return []

    def summary(self) -> dict[str, float]:
        return {}

    def parameters(self) -> list[nn.Parameter]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"tensors": {}, "numbers": {"step": self.step}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["numbers"]["step"]
