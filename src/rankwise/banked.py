"""One base layer with the plain factors of many adapters, one of which each row of a batch takes.

    y[row] += up_a @ (down_a @ x[row])        a: the adapter that the row names

for all rows at once, without a loop over adapters. Two ways, chosen by what they cost:

- a product for each row: the factors of its adapter, padded to the largest rank R of the layer, in one batched product.
  Work as for one adapter of rank R; memory for (rows × R) ranks.
- one product for all: the factors of all adapters stacked, Σr ranks, and in between every row keeps its own adapter's.
  Work as for one adapter of rank Σr; memory for Σr ranks. For few adapters, or ranks that are far apart.

A row without an adapter has zeros added to it, which leaves it as it was. Everything of rank size has its ranks first:
on a CPU products with eight rows run up to twice as fast as the same products with eight columns.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from rankwise.errors import StateError
from rankwise.plain import Plain

EXPERTS = "experts"  # what transformers calls a list of layers of which each is given the tokens that a router picks


@dataclass(frozen=True)
class Rows:
    """The adapter of each row, None for the base; `copies` of each row may come one behind the other."""

    names: tuple[str | None, ...]
    copies: int

    @cached_property
    def groups(self) -> tuple[str | None, ...]:
        """As few equally long runs of rows as have one adapter each: one if all rows name the same."""
        return self.names[:1] if len(set(self.names)) == 1 else self.names


class Branch(Protocol):
    def add_(self, y: Tensor, x: Tensor) -> None:
        """Add to y (N, d_out) the update of x (N, d_in); N is as many times the number of rows as there are tokens."""


class ForEachRow(NamedTuple):
    """A product for each row."""

    down: Tensor  # (rows, R, d_in)
    up: Tensor  # (rows, R, d_out)

    def add_(self, y: Tensor, x: Tensor) -> None:
        rows = self.down.shape[0]
        h = torch.bmm(self.down, x.view(rows, -1, x.shape[-1]).mT)  # (rows, R, tokens)
        y.view(rows, -1, y.shape[-1]).baddbmm_(h.mT, self.up)


class ForAll(NamedTuple):
    """One product for all rows."""

    down: Tensor  # (Σr, d_in)
    up: Tensor  # (Σr, d_out)
    own: Tensor | None  # (Σr, rows, 1), 1 where the rank is the row's; None if every rank is every row's

    def add_(self, y: Tensor, x: Tensor) -> None:
        h = self.down @ x.mT  # (Σr, N)
        if self.own is not None:
            h.view(*self.own.shape[:2], -1).mul_(self.own)
        y.addmm_(h.mT, self.up)


def make_branch(factors: Mapping[str, Plain], groups: tuple[str | None, ...], like: Tensor) -> Branch | None:
    """The cheaper of the two ways, in the type and on the device of `like`; None if no row has an update here."""
    used = [n for n in dict.fromkeys(groups) if n in factors and factors[n].rank]  # type: ignore[index]
    if not used:
        return None
    parts = [factors[n] for n in used]  # type: ignore[index]
    largest, together = max(p.rank for p in parts), sum(p.rank for p in parts)
    if together > 2 * largest and len(groups) * largest <= 4 * together:
        return _for_each_row([factors.get(n) for n in groups], largest, like)  # type: ignore[arg-type]
    down = torch.cat([p.down for p in parts]).to(like)
    up = torch.cat([p.up for p in parts], dim=1).to(like).T.contiguous()
    if len(groups) == 1:
        return ForAll(down, up, None)
    own = [torch.tensor([g == n for g in groups])[:, None].expand(-1, p.rank) for n, p in zip(used, parts, strict=True)]
    return ForAll(down, up, torch.cat(own, dim=1).T[..., None].to(like))


def _for_each_row(parts: list[Plain | None], largest: int, like: Tensor) -> ForEachRow:
    some = next(p for p in parts if p is not None)
    none = Plain(some.up[:, :0], some.down[:0])
    padded = [(p or none).padded(largest) for p in parts]
    return ForEachRow(torch.stack([p.down for p in padded]).to(like), torch.stack([p.up.mT for p in padded]).to(like))


class BankedLayer:
    """A module of the base, hooked: its adapters' factors, and its twins with what an adapter trained in full."""

    def __init__(self, path: str, module: nn.Module) -> None:
        self.path, self.module = path, module
        self._routed = EXPERTS in path.split(".")
        self.factors: dict[str, Plain] = {}
        self.twins: dict[str, nn.Module] = {}
        self.rows: Rows | None = None  # those of the batch that comes; None for the base alone
        self._branch: Branch | None = None
        self._made_for: tuple[Any, ...] | None = None  # rows, type and device of the branch, which is kept for the next
        self._handle = module.register_forward_hook(self._after)

    def put(self, name: str, part: Plain | None, trained: Mapping[str, Tensor]) -> None:
        """Take in what an adapter has for this module, in place of what it had."""
        self.drop(name)
        if part is not None:
            self.factors[name] = part
        if trained:
            self.twins[name] = _twin(self.module, trained)

    def drop(self, name: str) -> None:
        self.factors.pop(name, None)
        self.twins.pop(name, None)
        self._made_for = None

    @property
    def empty(self) -> bool:
        return not self.factors and not self.twins

    def release(self) -> None:
        """The module is as it was before it was hooked."""
        self._handle.remove()

    def _after(self, module: nn.Module, given: tuple[Any, ...], y: Tensor) -> Tensor:
        if self.rows is None:
            return y
        groups, x = self.rows.groups, given[0]
        if x.shape[0] % len(groups) or (self._routed and len(groups) > 1):
            raise StateError(
                f"{self.path} was given {x.shape[0]} rows{' by a router' if self._routed else ''}, and the batch has "
                f"{len(groups)}: this layer does not see the batch row by row. Take one adapter for the whole batch, "
                "or adapters that leave this layer out."
            )
        y = self._in_full(groups, x, y)
        if self._made_for != (groups, y.dtype, y.device):
            self._made_for = (groups, y.dtype, y.device)
            self._branch = make_branch(self.factors, groups, y.new_empty(0))
        if self._branch is not None:
            y = y.contiguous()
            self._branch.add_(y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]).to(y.dtype))
        return y

    def _in_full(self, groups: tuple[str | None, ...], x: Tensor, y: Tensor) -> Tensor:
        """y with the rows of adapters that trained this module in full computed by their own."""
        used = [name for name in dict.fromkeys(groups) if name in self.twins]
        if not used:
            return y
        x, y = _by_group(x, len(groups)), _by_group(y, len(groups)).clone()
        for name in used:
            rows = [row for row, group in enumerate(groups) if group == name]
            own = self.twins[name](x[rows].flatten(0, 1))
            y[rows] = _by_group(own, len(rows))
        return y.flatten(0, 1)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(N, ...) as (groups, N / groups, ...)."""
    return x.reshape(groups, -1, *x.shape[1:])


def _twin(module: nn.Module, trained: Mapping[str, Tensor]) -> nn.Module:
    """The module with other values in the named parameters; it shares all else, and has no hook of ours."""
    twin = copy.copy(module)
    new = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in trained.items()}
    twin._parameters = {**module._parameters, **new}
    twin._forward_hooks = OrderedDict()
    return twin
