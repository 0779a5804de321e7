"""Operations on an adapted model's modules: disable, swap, compact. No files, no training loop."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rankwise.adapter import LowRank
from rankwise.moments import sliced_state
from rankwise.part import Part


@contextmanager
def disabled(
    adapters: Mapping[str, LowRank | Part], trained: Mapping[str, nn.Parameter], originals: Mapping[str, Tensor]
) -> Iterator[None]:
    """Within the block the model is its base, bit for bit: nothing is added, and what trained is as it began, in the
    type and on the device that it has now."""
    before = {adapter: adapter.enabled for adapter in adapters.values()}
    values = {name: parameter.data for name, parameter in trained.items()}
    try:
        for adapter in before:
            adapter.enabled = False
        for name, parameter in trained.items():
            parameter.data = originals[name].to(parameter)
        yield
    finally:
        for adapter, enabled in before.items():
            adapter.enabled = enabled
        for name, parameter in trained.items():
            parameter.data = values[name]


def replace_modules(model: nn.Module, successors: Mapping[nn.Module, nn.Module]) -> None:
    """Put each successor in all the places of its predecessor."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module in successors:
            model.set_submodule(path, successors[module])


@dataclass(frozen=True)
class Compaction:
    """What a compaction removed."""

    kept: dict[str, Tensor]  # the ranks that stayed, for each layer that lost some
    replaced: dict[nn.Parameter, nn.Parameter]  # old parameter -> new
    regrown: int  # ranks that were dead by the last mask but not 0, and were set to 0


@torch.no_grad()
def compact(adapters: Mapping[str, LowRank], optimizer: Optimizer | None) -> Compaction:
    """Remove dead ranks from the tensors, their gradients and the optimizer's moments.

    Parameters are replaced, in the modules and in the optimizer's groups: a graph that is still alive from the last
    step keeps the old ones, whose shape it has recorded. Raises StateError, with nothing changed, for moments in a form
    that cannot be cut.
    """
    kept = {n: a.live.nonzero().flatten() for n, a in adapters.items() if not a.live.all()}
    regrown = sum(regrown_in(adapters[name]) for name in kept)
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    moments: dict[nn.Parameter, dict[str, object]] = {}
    for name, ranks in kept.items():
        for tensor, dim in adapters[name].rank_dims.items():
            old = adapters[name].own_parameter(tensor)
            replaced[old] = _sliced(old, dim, ranks)
            if optimizer is not None and old in optimizer.state:
                moments[old] = sliced_state(optimizer, old, dim, ranks)
    for name, ranks in kept.items():
        adapter = adapters[name]
        for tensor in adapter.rank_dims:
            adapter._parameters[tensor] = replaced[adapter.own_parameter(tensor)]
        adapter.live = adapter.live[ranks]
    if optimizer is not None:
        for old, state in moments.items():
            del optimizer.state[old]
            optimizer.state[replaced[old]] = state
        for group in optimizer.param_groups:
            group["params"] = [replaced.get(p, p) for p in group["params"]]
    return Compaction(kept, replaced, regrown)


def check_compactable(adapters: Iterable[LowRank], optimizer: Optimizer) -> None:
    """Raise StateError if the optimizer keeps something of an adapter's tensor that `compact` could not cut."""
    for adapter in adapters:
        for tensor, dim in adapter.rank_dims.items():
            sliced_state(optimizer, adapter.own_parameter(tensor), dim, adapter.live.nonzero().flatten())


def shrink(adapters: Mapping[str, LowRank], ranks: Mapping[str, int]) -> None:
    """Take layers down to the ranks that a saved adapter has; what their tensors hold is still to come."""
    if any(ranks[name] != adapter.rank for name, adapter in adapters.items()):
        for name, adapter in adapters.items():
            adapter.live.fill_(True)
            adapter.live[ranks[name] :] = False
        compact(adapters, None)


def _sliced(old: nn.Parameter, dim: int, ranks: Tensor) -> nn.Parameter:
    new = nn.Parameter(old.detach().index_select(dim, ranks), requires_grad=old.requires_grad)
    if old.grad is not None:
        new.grad = old.grad.index_select(dim, ranks)
    return new


def freeze_only(adapters: Mapping[str, LowRank], names: Iterable[str], frozen: Iterable[str]) -> None:
    """Freeze the named projections, "<layer>.<tensor>"; of those that are `frozen`, let the others train again."""
    wanted = set(names)
    for name in wanted | set(frozen):
        layer, _, tensor = name.rpartition(".")
        if name in wanted:
            adapters[layer].freeze(tensor)
        else:
            adapters[layer].unfreeze(tensor)


def regrown_in(adapter: LowRank) -> int:
    """How many ranks are dead by the mask and yet contribute, because nothing held them at 0 since."""
    up, down, gate, _, _ = adapter.factors()
    contributes = up.any(dim=0) & down.any(dim=1)
    if gate is not None:
        contributes &= gate != 0
    return int((contributes & ~adapter.live).sum())


def owners(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, tuple[nn.Module, str]]:
    """The module that holds each parameter, and its name there: FSDP2 puts another parameter in that place."""
    places = {p: (module, own) for module in model.modules() for own, p in module.named_parameters(recurse=False)}
    return {name: places[parameter] for name, parameter in parameters.items()}


def across_ranks(adapters: Iterable[LowRank], processes: int) -> Callable[[nn.Parameter], Any]:
    """For `fully_shard(..., shard_placement_fn=...)`: cuts adapter matrices across their ranks instead of between them,
    where FSDP2 can: the length must be divisible by `processes`. Every process then has a part of each rank."""
    from torch.distributed.tensor import Shard  # only where it is wanted: a build of torch may have no distributed

    matrices = {p: 1 - dim for a in adapters for n, dim in a.rank_dims.items() if (p := a.get_parameter(n)).ndim == 2}
    long = {p: dim for p, dim in matrices.items() if p.shape[dim] % processes == 0}
    return lambda parameter: Shard(long[parameter]) if parameter in long else None
