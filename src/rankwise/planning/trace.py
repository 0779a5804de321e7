"""Memory of one training pass, found by making the pass with tensors that have a shape and no values.

They are PyTorch's fake tensors, which unlike those of the meta device stand for tensors of a real one: autocast and
attention go the way that they go there. Every operation of the forward and the backward pass runs, autograd keeps what
it would keep, and what it lets go is gone: the bytes alive after each operation are those of a real pass, temporaries
included. What a kernel takes for itself and gives back before it returns is not seen.

A pass through K blocks that are all alike is made with 3 and with 4 of them. Counted from the turn, where the forward
pass ends, or from the end, operation i of both passes is the same one, and with m_k(i) bytes alive after it

    m_K(i) = m_4(i) + (K − 4) (m_4(i) − m_3(i))        peak = max_i m_K(i)

In the blocks between, memory lies between that of the first and of the last.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SHORT, LONG = 3, 4  # blocks of the two passes from which a deep one is told


@dataclass(frozen=True)
class Timeline:
    """Bytes alive after each operation of a pass, beyond those that were there before it."""

    alive: list[int]
    turn: int  # operations of the forward pass

    @property
    def peak(self) -> int:
        return max(self.alive)


def peak_of_pass(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """The most bytes that one forward and backward pass of a model on the meta device holds beyond the model itself."""
    stack = _alike_blocks(model)
    if stack is None:
        return timeline(model, loss).peak
    path, blocks = stack
    with _only(model, path, blocks[:SHORT]):
        short = timeline(model, loss)
    with _only(model, path, blocks[:LONG]):
        long = timeline(model, loss)
    return _peak_at_depth(len(blocks), short, long)


def timeline(model: nn.Module, loss: Callable[[], Tensor]) -> Timeline:
    """Run `loss()` and its backward pass once, with stand-ins for the model's tensors."""
    with FakeTensorMode(), _stand_ins(model) as resident, _Ledger(resident) as ledger:
        value = loss()
        turn = len(ledger.alive)
        value.backward()  # type: ignore[no-untyped-call]
    return Timeline(ledger.alive, turn)


@contextmanager
def _stand_ins(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block the model has fake tensors of the processor in place of its own."""
    held: list[dict[str, Any]] = [d for m in model.modules() for d in (m._parameters, m._buffers)]
    own = [dict(tensors) for tensors in held]
    fakes = {id(t): _fake(t) for tensors in own for t in tensors.values() if t is not None}
    try:
        for tensors in held:
            tensors.update({name: fakes[id(t)] for name, t in tensors.items() if t is not None})
        yield list(fakes.values())
    finally:
        for tensors, before in zip(held, own, strict=True):
            tensors.update(before)


def _fake(tensor: Tensor) -> Tensor:
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps account of storages: one comes with the first tensor on it, and goes when the last lets go of it."""

    def __init__(self, resident: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: list[int] = []
        self._now = 0
        self._resident = {id(s): s for s in (t.untyped_storage() for t in resident)}
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._enter(value.untyped_storage())
        self.alive.append(self._now)
        return out

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._resident or key in self._known:
            return
        self._now += size

        def leave(_: Any) -> None:
            del self._known[key]
            self._now -= size

        self._known[key] = weakref.ref(storage, leave)


def _peak_at_depth(depth: int, short: Timeline, long: Timeline) -> int:
    two_blocks = 2 * (long.turn - short.turn)  # a forward pass through two; the head's operations are fewer
    half = (len(short.alive) - short.turn) // 2
    turns = [p.alive[p.turn - two_blocks : p.turn + half] for p in (short, long)]
    ends = [p.alive[-half:] for p in (short, long)]
    pairs: list[tuple[int, int]] = [*zip(*turns, strict=True), *zip(*ends, strict=True)]
    return max(b + (depth - LONG) * (b - a) for a, b in pairs)


def _alike_blocks(model: nn.Module) -> tuple[str, list[nn.Module]] | None:
    """The one long list of blocks with the same parameters, of which the same train; None if there is none, or more."""
    stacks = [(n, list(m)) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 2 * LONG]
    if len(stacks) != 1 or len({_signature(block) for block in stacks[0][1]}) > 1:
        return None
    return stacks[0]


def _signature(block: nn.Module) -> tuple[Any, ...]:
    kinds = tuple((n, type(m)) for n, m in block.named_modules())
    return kinds, tuple((n, p.shape, p.dtype, p.requires_grad) for n, p in block.named_parameters())


@contextmanager
def _only(model: nn.Module, path: str, blocks: list[nn.Module]) -> Iterator[None]:
    """Within the block, the list at `path` holds these blocks alone."""
    whole = model.get_submodule(path)
    model.set_submodule(path, nn.ModuleList(blocks))
    try:
        yield
    finally:
        model.set_submodule(path, whole)


def autocast(kind: str, precision: str) -> AbstractContextManager[Any]:
    """The autocast of a precision: of "fp32" none."""
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(kind, types[precision]) if precision in types else nullcontext()
