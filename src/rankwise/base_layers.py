"""The base-layer axis: what a frozen layer must offer, and nothing about methods.

A kind of layer is one row of KINDS: its sizes and how an update is added to its weight. A method never asks which kind
it sits on; adding a kind (a quantised linear, say) is one row here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from rankwise.errors import TargetError


class Block(nn.Module):
    """Rows `start:stop` of a fused linear's output, as a base layer of its own (the q of a fused q, k, v).

    It holds the fused layer without owning it: the layer keeps its one place in the model's tree and state dict.
    """

    def __init__(self, fused: nn.Module, start: int, stop: int) -> None:
        super().__init__()
        self._fused = (fused,)  # in a tuple, so that it is not registered a second time
        self.start, self.stop = start, stop

    @property
    def fused(self) -> nn.Module:
        return self._fused[0]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fused(x)
        return y[..., self.start : self.stop]

    def extra_repr(self) -> str:
        return f"rows {self.start}:{self.stop}"


@dataclass(frozen=True)
class Kind:
    """One kind of base layer."""

    sizes: Callable[[nn.Module], tuple[int, int]]  # (d_in, d_out)
    weight: Callable[[nn.Module], Tensor]  # the weight as (d_out, d_in), a view where the layer allows it


def _block_sizes(block: nn.Module) -> tuple[int, int]:
    assert isinstance(block, Block)
    return sizes(block.fused)[0], block.stop - block.start


def _block_weight(block: nn.Module) -> Tensor:
    assert isinstance(block, Block)
    return weight(block.fused)[block.start : block.stop]


KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: Kind(lambda m: (m.in_features, m.out_features), lambda m: m.weight),  # type: ignore[return-value, arg-type]
    Conv1D: Kind(lambda m: tuple(m.weight.shape), lambda m: m.weight.T),  # type: ignore[return-value, arg-type]
    Block: Kind(_block_sizes, _block_weight),
}

# nn.MultiheadAttention reads the weight of this one and never calls it: a branch would be skipped in silence.
_NEVER_CALLED = (NonDynamicallyQuantizableLinear,)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module, or None when it is not a linear layer that can be adapted.

    A subclass of a known kind counts as that kind while its weight is an ordinary floating-point matrix; a packed
    (quantised) weight has another shape or type and is a kind of its own.
    """
    if isinstance(module, _NEVER_CALLED):
        return None
    for known, kind in KINDS.items():
        if isinstance(module, known) and (known is Block or _is_plain(module.weight)):
            return kind
    return None


def _is_plain(weight: object) -> bool:
    return isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point()


def _kind(base: nn.Module) -> Kind:
    kind = kind_of(base)
    if kind is None:
        known = ", ".join(sorted(k.__name__ for k in KINDS))
        raise TargetError(f"a {type(base).__name__} cannot be adapted; the kinds that can are {known}")
    return kind


def sizes(base: nn.Module) -> tuple[int, int]:
    """(d_in, d_out) of a base layer."""
    return _kind(base).sizes(base)


def weight(base: nn.Module) -> Tensor:
    """The weight as (d_out, d_in)."""
    return _kind(base).weight(base)


@torch.no_grad()
def add_to_weight_(base: nn.Module, delta: Tensor) -> None:
    """W ← round(W + delta), added in float32 and rounded to the weight's type once."""
    W = weight(base)
    W.copy_((W.float() + delta.to(W.device)).to(W.dtype))
