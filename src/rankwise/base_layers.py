"""The base-layer axis: what a frozen layer must offer, and nothing about methods.

A kind of layer is one row of KINDS: how it is known, its sizes and its weight. A method never asks which kind it sits
on; adding a kind is one row here. Kinds of other packages are known by the names of their types, so that transformers,
torchao and bitsandbytes are imported by who uses them and by nobody else.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from rankwise.errors import StateError, TargetError


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


def holder(base: nn.Module) -> nn.Module:
    """The layer that owns the weight: the fused one for a block, else the layer itself."""
    return base.fused if isinstance(base, Block) else base


def on(layer: nn.Module, base: nn.Module) -> nn.Module:
    """`base` as it would be if `layer` were the holder of its weight."""
    return Block(layer, base.start, base.stop) if isinstance(base, Block) else layer


@dataclass(frozen=True)
class Kind:
    """One kind of base layer."""

    name: str
    is_one: Callable[[Any], bool]
    sizes: Callable[[Any], tuple[int, int]]  # (d_in, d_out)
    weight: Callable[[Any], Tensor]  # as (d_out, d_in): a view where the layer allows it, a copy of a packed one
    packed: bool = False  # quantised: an update cannot be rounded into it
    transposed: bool = False  # it keeps the weight as (d_in, d_out)
    dtype: Callable[[Any], torch.dtype | None] = lambda m: m.weight.dtype  # it computes in; None if it takes any


def _block_sizes(block: Block) -> tuple[int, int]:
    return sizes(block.fused)[0], block.stop - block.start


def _features(linear: nn.Linear) -> tuple[int, int]:
    return linear.in_features, linear.out_features


def is_from(package: str, thing: object, name: str = "") -> bool:
    """Whether the type of `thing`, or one it derives from, is of that package and has that name, if one is given.

    Asked by name, so that the package need not be imported: who has no object of it may not have it at all, and some
    take seconds.
    """
    types = type(thing).__mro__
    return any(t.__module__.partition(".")[0] == package and name in ("", t.__name__) for t in types)


def _is_plain(module: nn.Module) -> bool:
    weight = module.weight
    matrix = isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point()
    # floats of 8 bits stand for other numbers, by scales that lie beside them
    wide = isinstance(weight, Tensor) and weight.element_size() > 1
    return matrix and wide and not is_from("torchao", weight) and not is_from("bitsandbytes", module)


def _torchao_weight(linear: nn.Linear) -> Tensor:
    """What the layer makes of the identity: not every packing can dequantise itself, but each has its product."""
    identity = torch.eye(linear.in_features, dtype=linear.weight.dtype, device=linear.weight.device)
    return F.linear(identity, linear.weight).T


def _8bit_weight(linear: Any) -> Tensor:
    if linear.weight.is_floating_point():
        return linear.weight  # type: ignore[no-any-return]
    rows = linear.weight.SCB if linear.state.SCB is None else linear.state.SCB  # the first call moves it
    return linear.weight.detach() * (rows / 127)[:, None]  # type: ignore[no-any-return]


def _4bit_weight(linear: Any) -> Tensor:
    state = linear.weight.quant_state
    if state is None:
        return linear.weight  # type: ignore[no-any-return]
    return sys.modules["bitsandbytes"].functional.dequantize_4bit(linear.weight.data, state)  # type: ignore[no-any-return]


def _4bit_dtype(linear: Any) -> torch.dtype:
    state = linear.weight.quant_state
    return linear.weight.dtype if state is None else state.dtype  # type: ignore[no-any-return]


def _fp8_weight(linear: Any) -> Tensor:
    """W · s, with one scale for the matrix or for each of its blocks."""
    scale = linear.weight_scale_inv.float()
    if linear.block_size is not None:
        for dim, (size, length) in enumerate(zip(linear.block_size, linear.weight.shape, strict=True)):
            scale = scale.repeat_interleave(size, dim).narrow(dim, 0, length)
    return linear.weight.detach().float() * scale  # type: ignore[no-any-return]


KINDS = (
    Kind("Linear", lambda m: isinstance(m, nn.Linear) and _is_plain(m), _features, lambda m: m.weight),
    Kind(
        "Conv1D",
        lambda m: is_from("transformers", m, "Conv1D") and _is_plain(m),
        lambda m: tuple(m.weight.shape),
        lambda m: m.weight.T,
        transposed=True,
    ),
    Kind(
        "Block",
        lambda m: isinstance(m, Block),
        _block_sizes,
        lambda m: weight(m.fused)[m.start : m.stop],
        dtype=lambda m: dtype_of(m.fused),
    ),
    Kind(
        "Linear with a torchao weight",
        lambda m: isinstance(m, nn.Linear) and is_from("torchao", m.weight),
        _features,
        _torchao_weight,
        packed=True,
    ),
    Kind(
        "Linear8bitLt",
        lambda m: is_from("bitsandbytes", m, "Linear8bitLt"),
        _features,
        _8bit_weight,
        packed=True,
        dtype=lambda m: None,
    ),
    Kind(
        "Linear4bit",
        lambda m: is_from("bitsandbytes", m, "Linear4bit"),
        _features,
        _4bit_weight,
        packed=True,
        dtype=_4bit_dtype,
    ),
    Kind(
        "FP8Linear",
        lambda m: is_from("transformers", m, "FP8Linear"),
        _features,
        _fp8_weight,
        packed=True,
        dtype=lambda m: None,
    ),
)

# nn.MultiheadAttention reads the weight of this one and never calls it: a branch would be skipped in silence.
_NEVER_CALLED = (NonDynamicallyQuantizableLinear,)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module, or None when it is not a linear layer that can be adapted.

    A subclass of a known kind counts as that kind while its weight is an ordinary floating-point matrix; a packed
    (quantised) weight has another shape or type and is a kind of its own.
    """
    if isinstance(module, _NEVER_CALLED):
        return None
    return next((kind for kind in KINDS if kind.is_one(module)), None)


def _kind(base: nn.Module) -> Kind:
    kind = kind_of(base)
    if kind is None:
        known = ", ".join(sorted(k.name for k in KINDS))
        raise TargetError(f"a {type(base).__name__} cannot be adapted; the kinds that can are {known}")
    return kind


def sizes(base: nn.Module) -> tuple[int, int]:
    """(d_in, d_out) of a base layer."""
    return _kind(base).sizes(base)


def weight(base: nn.Module) -> Tensor:
    """The weight as (d_out, d_in). For a packed one this computes a whole copy: ask `device_of` for its device."""
    return _kind(base).weight(base)


def device_of(base: nn.Module) -> torch.device:
    """Where the weight lies."""
    return holder(base).weight.device  # type: ignore[return-value]


def dtype_of(base: nn.Module) -> torch.dtype | None:
    """The type the layer computes in; None if it takes any."""
    return _kind(base).dtype(base)


def is_packed(module: nn.Module) -> bool:
    """Whether a module is a linear layer with a quantised weight."""
    kind = kind_of(holder(module))
    return kind is not None and kind.packed


def is_transposed(base: nn.Module) -> bool:
    """Whether the layer keeps its weight as (d_in, d_out): "fan_in_fan_out" in other libraries' files."""
    return _kind(holder(base)).transposed


def count(model: nn.Module) -> int:
    """Parameters of a model; a quantised weight counts as the numbers it stands for, not as bytes."""
    total = sum(p.numel() for p in model.parameters())
    for module in model.modules():
        if not isinstance(module, Block) and is_packed(module):
            d_in, d_out = sizes(module)
            total += d_in * d_out - module.weight.numel()  # type: ignore[operator]
    return total


def weightless(d_out: int, d_in: int) -> nn.Linear:
    """A linear layer of that shape whose weight takes no memory and is nothing to compute with."""
    linear = nn.Linear(d_in, d_out, bias=False, device="meta")
    linear.weight = nn.Parameter(torch.zeros(1).expand(d_out, d_in), requires_grad=False)
    return linear


@torch.no_grad()
def unpacked(base: nn.Module) -> nn.Linear:
    """An ordinary linear, in float32, with the weight that a packed layer computes with."""
    bias = base.bias
    d_in, d_out = sizes(base)
    linear = nn.Linear(d_in, d_out, bias=bias is not None, device="meta").train(base.training)
    linear.weight = nn.Parameter(weight(base).detach().to(torch.float32, copy=True))
    if isinstance(bias, Tensor):
        linear.bias = nn.Parameter(bias.detach().to(torch.float32, copy=True))
    return linear


@torch.no_grad()
def add_to_weight_(base: nn.Module, delta: Tensor) -> None:
    """W ← round(W + delta), added in float32 and rounded to the weight's type once. Refused for a packed weight."""
    if is_packed(base):
        raise StateError(f"an update cannot be added to the quantised weight of a {_kind(holder(base)).name}.")
    W = weight(base)
    W.copy_((W.float() + delta.to(W.device)).to(W.dtype))
