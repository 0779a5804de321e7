"""What several processes change, in one place. In a single process every function here is the identity, or the plain
formula, and nothing is sent.

DDP: each process holds whole tensors and the same reduced gradients; equal code decides equally, and sends nothing.

FSDP2: a parameter is a DTensor, and each process holds a slice of it along one dimension. Importance stays with the
slice. Sent are sums over slices, which are vectors of rank size and r × r Gram matrices; only a matrix that is cut
between its ranks is put together whole, for its orthogonality needs every pair of ranks.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rankwise.errors import StateError

T = TypeVar("T")


def grouped() -> bool:
    """Whether this process is one of a group, which may be a group of one."""
    return dist.is_available() and dist.is_initialized()


def is_first() -> bool:
    """Whether this process writes the files that are written once."""
    return not grouped() or dist.get_rank() == 0


def is_split(tensor: Tensor) -> bool:
    """Whether this process holds a slice of it only."""
    return split_of(tensor) is not None


class Split(NamedTuple):
    """How a tensor is spread: this process holds `start:stop` of dimension `dim`."""

    group: Any  # of the processes that hold the slices
    dim: int
    start: int
    stop: int
    step: int  # length of the longest slice


_PLAIN = (Tensor, nn.Parameter)  # asked for first: this is called several times for each tensor in each step


def split_of(tensor: Tensor) -> Split | None:
    """None for a tensor that is here whole. Raises StateError for one cut along several dimensions of the mesh."""
    if type(tensor) in _PLAIN or not grouped():
        return None
    from torch.distributed.tensor import DTensor  # only where it can be one: a build of torch may have no distributed

    if not isinstance(tensor, DTensor):
        return None
    shards = [(i, p) for i, p in enumerate(tensor.placements) if not p.is_replicate()]
    if not shards:
        return None
    if len(shards) > 1 or not shards[0][1].is_shard():
        raise StateError(
            f"an adapter parameter is laid out as {tensor.placements}; FSDP2 over one dimension of the mesh is what "
            "can be trained. Keep tensor parallelism away from the adapted layers."
        )
    at, placement = shards[0]
    mesh, dim = tensor.device_mesh, placement.dim  # type: ignore[attr-defined]
    size = tensor.shape[dim]
    step = -(-size // mesh.size(at))  # as torch.chunk cuts: the last ones may be short or empty
    start = min(mesh.get_local_rank(at) * step, size)
    return Split(mesh.get_group(at), dim, start, min(start + step, size), step)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, without a copy: changing it changes the tensor."""
    if not is_split(tensor):
        return tensor
    held: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return held


def part(whole: Tensor, like: Tensor) -> Tensor:
    """The part of `whole` that this process holds of `like`."""
    split = split_of(like)
    return whole if split is None else whole.narrow(split.dim, split.start, split.stop - split.start)


def _by_group(splits: Sequence[Split | None]) -> dict[Any, list[int]]:
    """Positions of what is split, in order, by the group that holds the slices."""
    groups: dict[Any, list[int]] = {}
    for i, split in enumerate(splits):
        if split is not None:
            groups.setdefault(split.group, []).append(i)
    return groups


def gather(parts: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """The whole tensors on every process, of which `parts` are slices as of `like`. One all-gather."""
    splits = [split_of(t) for t in like]
    whole = list(parts)
    for group, indices in _by_group(splits).items():
        cut = [(i, s) for i in indices if (s := splits[i]) is not None]
        padded = [_padded(parts[i].movedim(s.dim, 0), s.step) for i, s in cut]
        sent = torch.cat([p.flatten() for p in padded])
        received = sent.new_empty(dist.get_world_size(group), sent.numel())
        dist.all_gather(list(received), sent, group)
        slices = torch.split(received, [p.numel() for p in padded], dim=1)
        for (i, s), one, own in zip(cut, slices, padded, strict=True):
            rows = one.reshape(-1, *own.shape[1:])[: like[i].shape[s.dim]]
            whole[i] = rows.movedim(0, s.dim)
    return whole


def _padded(rows: Tensor, length: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(length - rows.shape[0], *rows.shape[1:])])


def whole_state(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of this process's parts as one of whole tensors; `like` has the parameter of each that may be a part."""
    known = [name for name in state if name in like]
    return dict(state) | dict(zip(known, gather([state[n] for n in known], [like[n] for n in known]), strict=True))


def own_state(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This process's parts of a state of whole tensors."""
    return {name: part(tensor, like[name]) if name in like else tensor for name, tensor in state.items()}


def add_up(terms: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Sums over processes of the terms that come from slices; the others as they are. One all-reduce."""
    sums = list(terms)
    for group, indices in _by_group([split_of(t) for t in like]).items():
        flat = torch.cat([terms[i].flatten() for i in indices])
        dist.all_reduce(flat, group=group)
        for i, one in zip(indices, torch.split(flat, [terms[i].numel() for i in indices]), strict=True):
            sums[i] = one.view(terms[i].shape)
    return sums


def means(values: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """(n,) mean of all elements of each of n tensors. Sent: one number each."""
    terms = [v.sum() / p.numel() if is_split(p) else v.mean() for v, p in zip(values, like, strict=True)]
    return torch.stack(on_one_device(add_up(terms, like)))


def on_one_device(tensors: Sequence[Tensor]) -> list[Tensor]:
    """That of the first: the layers of a large model may lie on several."""
    return [tensor.to(tensors[0].device) for tensor in tensors]


def rank_means(values: Iterable[Tensor], like: Sequence[Tensor], rank_dims: Sequence[int]) -> list[Tensor]:
    """(r,) mean of each tensor over every dimension but that of its ranks. Sent: r numbers each."""
    terms = [_rank_term(v, p, dim) for v, p, dim in zip(values, like, rank_dims, strict=True)]
    return add_up(terms, like)


def _rank_term(value: Tensor, like: Tensor, rank_dim: int) -> Tensor:
    split = split_of(like)
    others = [d for d in range(value.ndim) if d != rank_dim]
    if split is None:
        return value.mean(dim=others) if others else value
    ranks = like.shape[rank_dim]
    term = value.sum(dim=others) / (like.numel() // ranks) if others else value
    if split.dim != rank_dim:
        return term
    placed = term.new_zeros(ranks)
    placed[split.start : split.stop] = term
    return placed


class Vectors:
    """Matrices with one row for each rank, (r, d), of parameters that may be split.

    Of one that is cut across its ranks each process has a part of every row; the Gram matrices add up. One that is cut
    between its ranks is put together whole. Sent: r² numbers for each of the former, d · r for each of the latter.
    """

    def __init__(self, parameters: Sequence[Tensor], rank_dims: Sequence[int]) -> None:
        self.parameters, self.rank_dims = parameters, rank_dims
        splits = [split_of(p) for p in parameters]
        self._cut = [s is not None and s.dim == dim for s, dim in zip(splits, rank_dims, strict=True)]
        held = gather([local(p.detach()) for p in parameters], self._where(self._cut))
        self.rows = [_rank_first(m, dim) for m, dim in zip(held, rank_dims, strict=True)]
        self._partial = self._where([s is not None and not cut for s, cut in zip(splits, self._cut, strict=True)])

    def _where(self, taken: Sequence[bool]) -> list[Tensor]:
        """The parameters that are taken, with something that is not split in the place of the others."""
        return [p if take else _WHOLE for p, take in zip(self.parameters, taken, strict=True)]

    def total(self, grams: Sequence[Tensor]) -> list[Tensor]:
        """The Gram matrices of whole rows, from those of the parts that are here."""
        return add_up(grams, self._partial)

    def own(self, multipliers: Sequence[Tensor]) -> list[Tensor]:
        """The rows of each M (r, r) that make the rows of M C which this process holds."""
        splits = [split_of(p) for p in self._where(self._cut)]
        return [M if s is None else M[s.start : s.stop] for M, s in zip(multipliers, splits, strict=True)]

    def gradients(self) -> list[Tensor]:
        """What this process holds of the parameters' gradients, as views with one row for each of its ranks."""
        held = [local(p.grad) for p in self.parameters if p.grad is not None]
        return [_rank_first(g, dim) for g, dim in zip(held, self.rank_dims, strict=True)]


def _rank_first(matrix: Tensor, rank_dim: int) -> Tensor:
    return matrix if rank_dim == 0 else matrix.T


_WHOLE = torch.empty(0)


def everywhere(facts: Sequence[bool], like: Sequence[Tensor]) -> list[bool]:
    """Which facts hold on every process, where tensors are split. Sent: one number each."""
    first = next((t for t in like if is_split(t)), None)
    if first is None:
        return list(facts)
    flags = torch.tensor(facts, dtype=torch.float32, device=first.device)
    dist.all_reduce(flags, op=dist.ReduceOp.MIN)
    return [flag == 1 for flag in flags.tolist()]


def from_all(value: T) -> list[T]:
    """The value of every process, in their order."""
    if not grouped():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def together() -> Iterator[None]:
    """Processes leave the block when all have come to its end, and if one fails there, all do.

    Raises the own error, or StateError where another process failed.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    told = from_all(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    failed = {i: message for i, message in enumerate(told) if message is not None}
    if failed:
        raise StateError("; ".join(f"process {i} failed with {message}" for i, message in failed.items()))


def check_run(parameters: Sequence[nn.Parameter], *, compacts: bool) -> None:
    """Raise StateError if a run over these adapter parameters cannot be what was asked for."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes", "on")
    if asked and parameters and not any(is_split(p) for p in parameters):
        raise StateError(
            "the launcher was asked for FSDP (ACCELERATE_USE_FSDP), but the adapters are not sharded. accelerate gives "
            "no FSDP on CPU and says nothing, and version 1 cannot be used here. Launch with fsdp_version: 2 on "
            "accelerators (examples/accelerate/fsdp2.yaml), with DDP (examples/accelerate/ddp.yaml), or call torch's "
            "fully_shard yourself before attached()."
        )
    if compacts:
        _refuse_compaction_in_groups()


def check_compaction(model: nn.Module, *, inside_a_run: bool) -> None:
    """Raise StateError where ranks cannot be removed."""
    if inside_a_run:
        _refuse_compaction_in_groups()
    refuse_split(model, "compacting")


def _refuse_compaction_in_groups() -> None:
    if grouped():
        raise StateError(
            "ranks are not removed inside a run of several processes: DDP and FSDP2 count on the shapes they began "
            "with. Leave compact_at_end_of_budget out; load the saved adapter in one process and compact() it there."
        )


def refuse_split(model: nn.Module, what: str) -> None:
    """Raise StateError if any parameter of `model` is here in part only."""
    if any(is_split(p) for p in model.parameters()):
        raise StateError(
            f"{what} needs the whole weights, and FSDP2 has spread them over the processes. "
            "Save the adaptation, and load it in one process to do so."
        )
