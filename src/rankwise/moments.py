"""What an optimizer keeps of a parameter, cut to some of its ranks.

    of the parameter's shape         Adam's moments, momentum                    cut as the parameter is
    one number                       a count of steps                            stays
    of sizes the parameter's or 1    torch's Adafactor: a mean over a dimension  cut where the ranks lie in it
    exp_avg_sq_row, exp_avg_sq_col   transformers' Adafactor: the same, without the dimension

A mean over the ranks stays the one over all of them, dead ones included, until the next steps have moved it.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from rankwise.errors import StateError

FACTORED = {"exp_avg_sq_row": 0, "exp_avg_sq_col": 1}  # and which dimension of a matrix is left in them


def sliced_state(optimizer: Optimizer, of: Parameter, dim: int, ranks: Tensor) -> dict[str, object]:
    """The optimizer's state of the parameter, whose dimension `dim` is that of the ranks, for these `ranks` alone.

    Raises StateError for a tensor of which nobody knows where the ranks lie: blocks of 8-bit moments, say.
    """
    return {
        name: value if _has_no_ranks(value) else _sliced(optimizer, name, value, of, dim, ranks)
        for name, value in optimizer.state.get(of, {}).items()
    }


def _has_no_ranks(value: Any) -> bool:
    """A number, or several of them; of other things nobody knows."""
    if isinstance(value, Mapping):
        return all(map(_has_no_ranks, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_has_no_ranks, value))
    return value.ndim == 0 if isinstance(value, Tensor) else value is None or isinstance(value, int | float | str)


def _sliced(optimizer: Optimizer, name: str, value: Any, of: Parameter, dim: int, ranks: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise _uncut(optimizer, name, of, f"a {type(value).__name__}")
    if value.is_floating_point() and value.ndim == of.ndim:
        if all(own in (1, size) for own, size in zip(value.shape, of.shape, strict=True)):
            return value.index_select(dim, ranks) if value.shape[dim] == of.shape[dim] else value
    if name in FACTORED and of.ndim == 2 and value.shape == (of.shape[FACTORED[name]],):
        return value.index_select(0, ranks) if dim == FACTORED[name] else value
    raise _uncut(optimizer, name, of, f"{tuple(value.shape)} in {value.dtype}")


def _uncut(optimizer: Optimizer, name: str, of: Parameter, form: str) -> StateError:
    return StateError(
        f"{type(optimizer).__name__} keeps {name} of an adapter's {tuple(of.shape)} tensor as {form}, from which no "
        "ranks can be taken away. Take an optimizer with moments in floating point and of the parameter's shape, such "
        "as AdamW, or compact after training."
    )
