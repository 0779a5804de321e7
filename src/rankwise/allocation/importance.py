"""Importance of single elements, smoothed: the two running means that AdaLoRA and AFLoRA share (both from PLATON).

    Ī ← β₁ Ī + (1 − β₁) I          the running mean of a raw signal I
    Ū ← β₂ Ū + (1 − β₂) |I − Ī|    its uncertainty, with the Ī just updated
    s = Ī · Ū

Both start at 0, without bias correction. The state is float32 whatever the parameters are: in half precision s
underflows, and ties would decide.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Signal = Literal["gradient", "sensitivity", "relative_gradient"]


@torch.no_grad()
def raw_signal(signal: Signal, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """I per element, float32: |g|, |w · g|, or |g / w| (0 where w is 0)."""
    if not gradients:
        return []
    g32 = [_in_float32(g) for g in gradients]
    if signal == "gradient":
        return list(torch._foreach_abs(g32))
    w32 = [_in_float32(w) for w in weights]
    if signal == "sensitivity":
        products = list(torch._foreach_mul(g32, w32))
    else:
        # a weight of exactly 0 has no relative gradient
        products = [torch.where(w == 0, 0.0, g / w) for w, g in zip(w32, g32, strict=True)]
    torch._foreach_abs_(products)
    return products


def _in_float32(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float32 else t.float()


class Importance:
    """Ī and Ū for a list of tensors, addressed by their position in it."""

    def __init__(self, like: Sequence[Tensor], beta1: float, beta2: float) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.mean = [torch.zeros_like(t, dtype=torch.float32) for t in like]  # Ī
        self.uncertainty = [torch.zeros_like(t, dtype=torch.float32) for t in like]  # Ū

    @torch.no_grad()
    def update(self, indices: Sequence[int], signals: Sequence[Tensor]) -> None:
        """Average in one step's signals, for the tensors at `indices`."""
        for block in blocks(signals):
            new = [signals[k] for k in block]
            mean = [self.mean[indices[k]] for k in block]
            uncertainty = [self.uncertainty[indices[k]] for k in block]
            torch._foreach_lerp_(mean, new, 1 - self.beta1)
            deviation = list(torch._foreach_sub(new, mean))
            torch._foreach_abs_(deviation)
            torch._foreach_lerp_(uncertainty, deviation, 1 - self.beta2)

    def observe(
        self,
        indices: Sequence[int],
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        grad_scale: Tensor | None = None,
    ) -> None:
        """Average in |w · g| of the tensors at `indices`; the gradients still carry `grad_scale`, if it is given.

        A block of tensors at a time goes through all that is done to it, so that no signal of the whole model is ever
        held, and what one operation leaves is in the cache of the next.
        """
        for block in blocks(weights):
            signals = raw_signal("sensitivity", [weights[k] for k in block], [gradients[k] for k in block])
            if grad_scale is not None:
                torch._foreach_div_(signals, grad_scale)
            self.update([indices[k] for k in block], signals)

    def score(self, index: int) -> Tensor:
        """s = Ī · Ū of one tensor."""
        return self.mean[index] * self.uncertainty[index]

    def keep(self, index: int, dim: int, ranks: Tensor) -> None:
        """Drop everything but `ranks` along `dim` of one tensor: the parameter was compacted."""
        self.mean[index] = self.mean[index].index_select(dim, ranks)
        self.uncertainty[index] = self.uncertainty[index].index_select(dim, ranks)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name: "mean.0", "uncertainty.0", ..."""
        means = {f"mean.{i}": t for i, t in enumerate(self.mean)}
        return means | {f"uncertainty.{i}": t for i, t in enumerate(self.uncertainty)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a saved state in; the shapes must be those of this run."""
        for name, own in self.state_dict().items():
            own.copy_(state[name])


def blocks(tensors: Sequence[Tensor], most_on_cpu: int = 2**17) -> Iterator[range]:
    """Runs of positions whose tensors have, together, about as many elements as a core's cache holds; an accelerator,
    which is slow to start anything, gets longer ones.
    """
    start, size = 0, 0
    for k, tensor in enumerate(tensors):
        most = most_on_cpu if tensor.device.type == "cpu" else 2**24
        if size and size + tensor.numel() > most:
            yield range(start, k)
            start, size = k, 0
        size += tensor.numel()
    if start < len(tensors):
        yield range(start, len(tensors))
