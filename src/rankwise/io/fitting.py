"""Whether a saved adapter fits a model or an adaptation, and copying it in: nothing is changed unless all fits."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rankwise.adapter import LowRank, Method, is_adapted
from rankwise.base_layers import kind_of, sizes
from rankwise.distributed import grouped, local, part
from rankwise.errors import ConfigError, FolderError, StateError
from rankwise.io.description import fault_of_numbers
from rankwise.io.folder import ADAPTER, DESCRIPTION, STATE, Saved, collect, read
from rankwise.io.untrusted import brief
from rankwise.methods.low_rank import LowRankMethod
from rankwise.part import Part

ALWAYS = 256  # ranks that a layer may have had, however small it is: others take one rank for large and small layers


def check_fits(folder: Path, saved: Saved, model: nn.Module) -> None:
    """Raise FolderError at the first layer of the folder that the model has not, or has in another shape."""
    modules = dict(model.named_modules())
    if is_adapted(model):
        raise StateError("the model is adapted already. Undo, merge or reload it before loading an adapter into it.")
    _check_ranks(folder, saved)
    for name, layer in saved.layers.items():
        path = name.partition("[")[0]
        if path not in modules or kind_of(modules[path]) is None:
            raise FolderError(f"{folder} was made for another architecture: the model has no linear layer {path!r}.")
        if "[" not in name:
            shape = list(reversed(sizes(modules[path])))
            if shape != layer["shape"]:
                raise FolderError(
                    f"{folder} was made for another model: {path} is {shape}, saved was {layer['shape']}."
                )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in saved.trained:
        if name not in parameters:
            raise FolderError(
                f"{folder} holds a trained {name!r}, which the model has not. Load it with the same head."
            )
        if parameters[name].shape != saved.tensors[name].shape or not parameters[name].is_floating_point():
            shapes = f"{list(parameters[name].shape)}, saved was {brief(list(saved.tensors[name].shape))}"
            raise FolderError(f"{folder} was made for another head: {name} is {shapes}. Check num_labels.")


def _check_ranks(folder: Path, saved: Saved) -> None:
    """Layers are built with the ranks that they began with. Raise FolderError if they cannot have had so many, nor the
    file has so many numbers."""
    method = saved.method
    if not (isinstance(method, LowRankMethod) and method.bounded_rank):
        return
    numbers = Counter[str]()
    for name, tensor in saved.tensors.items():
        numbers[name.rpartition("::")[0]] += tensor.numel()
    for name, layer in saved.layers.items():
        most = max(min(layer["shape"]), ALWAYS, numbers[name] // sum(layer["shape"]))
        if method.initial_rank(name) > most:
            raise FolderError(
                f"{folder} is not what rankwise writes: {brief(name)} began with {method.initial_rank(name):,} ranks, "
                f"and {most:,} are possible."
            )


def check_layers(folder: Path, saved: Saved, adapters: Mapping[str, LowRank], parts: Mapping[str, Part]) -> None:
    """Raise FolderError at the first layer that only one of folder and adaptation has, or that has too many ranks."""
    in_folder = saved.layers.keys() | set(saved.parts)
    for name in sorted(in_folder ^ (adapters.keys() | parts.keys())):
        where = "the folder, not the model" if name in in_folder else "the model, not the folder"
        raise FolderError(f"{folder} was made for another adaptation: {name} is adapted in {where}.")
    for name, adapter in adapters.items():
        rank = saved.layers[name]["rank"]
        if not 0 <= rank <= adapter.rank:
            raise FolderError(f"{folder}: {name} has {rank} ranks saved, and at most {adapter.rank} are possible here.")


def check_tensors(
    folder: Path,
    saved: Saved,
    adapters: Mapping[str, LowRank],
    parts: Mapping[str, Part],
    trained: Mapping[str, nn.Parameter],
) -> None:
    """Raise FolderError unless the saved tensors are those of these layers, taken down to the saved ranks."""
    own = collect({**adapters, **parts}, trained)
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    for layer, adapter in adapters.items():
        shapes |= {f"{layer}::{name}": shape for name, shape in _shapes_at(saved.held()[layer], adapter).items()}
    _check_same(folder, saved.tensors, shapes)
    for name in saved.frozen:
        layer, _, tensor = name.rpartition(".")
        if tensor not in adapters[layer].own_parameters():
            raise FolderError(f"{folder / DESCRIPTION} lists {brief(name)} as frozen, which never trains.")


def _shapes_at(rank: int, adapter: LowRank) -> dict[str, tuple[int, ...]]:
    """Of a layer's tensors, once it has been taken down to so many ranks."""
    shapes = {name: list(tensor.shape) for name, tensor in adapter.tensors().items()}
    for name, dim in {"live": 0, **adapter.rank_dims}.items():
        shapes[name][dim] = rank
    return {name: tuple(shape) for name, shape in shapes.items()}


def check_run(folder: Path, saved: Saved, method: Method, adapters: Mapping[str, LowRank]) -> None:
    """Raise FolderError unless a controller of these adapters, at the saved ranks, can continue the saved state."""
    assert saved.run is not None
    total, numbers = saved.run["total_steps"], saved.run["numbers"]
    try:
        controller = None if total is None else method.controller(adapters, total, saved.run["steps_per_epoch"])
    except ConfigError as error:
        raise FolderError(f"{folder} is not what rankwise writes: its run cannot be: {error}") from error
    parameters = [] if controller is None else controller.parameters()
    if not grouped():  # there the state of a new one is put together by all processes
        fresh = {"tensors": {}, "numbers": {}} if controller is None else controller.state_dict()
        fault = fault_of_numbers(numbers, fresh["numbers"])
        if fault or fresh["tensors"].keys() - saved.state.keys():
            raise FolderError(f"{folder} is not what rankwise writes: its numbers {fault or 'lack their tensors'}.")
    frozen, seen = numbers.get("frozen", []), numbers.get("seen", parameters)
    if len(seen) != len(parameters) or not set(frozen) <= set(range(len(parameters))):
        raise FolderError(f"{folder} is not what rankwise writes: its run is of other layers.")
    if numbers.get("step", saved.run["steps"]) != saved.run["steps"]:
        raise FolderError(f"{folder} is not what rankwise writes: its run is at two steps at once.")
    shapes = {
        adapter.own_parameter(name): shape
        for layer, adapter in adapters.items()
        for name, shape in _shapes_at(saved.held()[layer], adapter).items()
        if name in adapter.own_parameters()
    }
    for name, tensor in saved.state.items():
        match = re.fullmatch(r"[a-z_]+\.(\d{1,9})", name)
        at = int(match[1]) if match else len(parameters)
        fitting = [(0,)] if at in frozen else []  # of a frozen projection nothing is kept
        if at >= len(parameters) or tuple(tensor.shape) not in (*fitting, shapes[parameters[at]]):
            raise FolderError(
                f"{folder / STATE}: {brief(name)} is {brief(list(tensor.shape))}; no layer has such a state."
            )
    _check_finite(folder / STATE, saved.state)


def start_layers(folder: Path, method: Method, adapters: Mapping[str, LowRank], parts: Mapping[str, Part]) -> None:
    """Copy the saved tensors of the layers alone, not of what trained beside them; all ranks live."""
    saved = read(folder)
    if saved.method.name != method.name:
        raise FolderError(f"{folder} holds a {saved.method.name} adapter; this run uses {method.name}.")
    check_layers(folder, saved, adapters, parts)
    own = collect({**adapters, **parts}, {})
    _copy(folder, {name: saved.tensors[name] for name in saved.tensors.keys() & own.keys()}, own)
    for adapter in adapters.values():
        adapter.live.fill_(True)


def copy_in(
    folder: Path, saved: Saved, adapters: Mapping[str, LowRank | Part], trained: Mapping[str, nn.Parameter]
) -> None:
    """Copy saved tensors into an adaptation of the same layers and ranks."""
    _copy(folder, saved.tensors, collect(adapters, trained))


@torch.no_grad()
def _copy(folder: Path, saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Copy by name. Nothing is copied unless all names and shapes match exactly, and all values are finite."""
    _check_same(folder, saved, {name: tuple(tensor.shape) for name, tensor in own.items()})
    for name, tensor in own.items():
        local(tensor).copy_(part(saved[name], tensor))


def _check_same(folder: Path, saved: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    path = folder / ADAPTER
    if shapes.keys() != saved.keys():
        missing, extra = sorted(shapes.keys() - saved.keys()), sorted(saved.keys() - shapes.keys())
        raise FolderError(f"{path} does not hold what it should: missing {missing[:3]}, extra {extra[:3]}.")
    for name, shape in shapes.items():
        if saved[name].shape != shape:
            raise FolderError(f"{path}: {name} is {brief(list(saved[name].shape))}, not {list(shape)}.")
    _check_finite(path, saved)


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise FolderError(
                f"{path} holds {int((~torch.isfinite(tensor)).sum())} values that are NaN or infinite in {name!r}. "
                "The run that wrote it diverged; take an earlier checkpoint."
            )
