"""The native adapter folder: everything an adaptation is, so that it can be used, continued or exported.

rankwise.json         format version, method and settings, base model, layers with their ranks and shapes, the run
adapter.safetensors   "<layer>::<tensor>" for adapter tensors, "<parameter>" for what trained beside them
state.safetensors     the controller's state, when the method decides while it trains
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rankwise.adapter import FusedBlocks, LowRank, Method
from rankwise.allocation.schedule import Epochs
from rankwise.base_layers import kind_of, sizes
from rankwise.errors import ConfigError, FolderError, StateError, nearest
from rankwise.io.atomic import recover, replaced_folder
from rankwise.methods import METHODS

FORMAT = 1
DESCRIPTION, ADAPTER, STATE = "rankwise.json", "adapter.safetensors", "state.safetensors"


@dataclass(frozen=True)
class Saved:
    """The content of a native folder, checked for consistency but not yet against a model."""

    method: Method
    base_model: dict[str, Any]
    layers: dict[str, dict[str, Any]]  # name -> {"rank": r, "shape": [d_out, d_in]}
    trained: list[str]
    frozen: list[str]  # "<layer>.<tensor>" of adapter tensors that no longer train
    tensors: dict[str, Tensor]
    run: dict[str, Any] | None  # {"total_steps", "steps_per_epoch", "steps", "numbers"}
    state: dict[str, Tensor]

    def ranks(self) -> dict[str, int]:
        """Live rank of each layer, as the last allocation left it."""
        return {name: int(self.tensors[f"{name}::live"].sum()) for name in self.layers}


def method_as_dict(method: Method) -> dict[str, Any]:
    """{"name": ..., settings}; spans in epochs as text."""
    settings = {k: str(v) if isinstance(v, Epochs) else v for k, v in vars(method).items()}
    return {"name": method.name, **settings}


def method_from_dict(data: Mapping[str, Any]) -> Method:
    """The method a dict describes. Raises ConfigError for an unknown name or setting, with the nearest known one."""
    settings = dict(data)
    name = settings.pop("name", None)
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; known are {sorted(METHODS)}.{nearest(str(name), METHODS)}")
    cls = METHODS[name]
    known = [f.name for f in fields(cls)]
    for key in settings:
        if key not in known:
            raise ConfigError(f"{name} has no setting {key!r}; it has {known}.{nearest(key, known)}")
    return cls(**settings)


def write(folder: Path, saved: Saved) -> None:
    """Write the folder, whole or not at all."""
    description = {k: v for k, v in vars(saved).items() if k not in ("tensors", "state", "method")}
    description = {"format": FORMAT, "method": method_as_dict(saved.method), **description}
    with replaced_folder(folder) as staging:
        (staging / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        _save_tensors(saved.tensors, staging / ADAPTER)
        if saved.state:
            _save_tensors(saved.state, staging / STATE)


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path, metadata={"format": "pt"})


def read(folder: Path) -> Saved:
    """Read and check a native folder. Raises FolderError, naming the file and what is wrong with it."""
    recover(folder)
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FolderError(f"{folder} is no rankwise adapter: it has no {DESCRIPTION}.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise FolderError(f"{path} has format {data['format']!r}; this version reads {FORMAT}.")
        description = {k: data[k] for k in ("base_model", "layers", "trained", "frozen", "run")}
        method = method_from_dict(data["method"])
        layers = {name: (layer["rank"], layer["shape"]) for name, layer in data["layers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(f"{path} is not what rankwise writes: {error!r}.") from error
    tensors = _load_tensors(folder / ADAPTER)
    state = _load_tensors(folder / STATE) if (folder / STATE).exists() else {}
    absent = [name for name in (*(f"{n}::live" for n in layers), *data["trained"]) if name not in tensors]
    if absent:
        raise FolderError(f"{folder / ADAPTER} does not hold what it should: missing {absent[:3]}.")
    saved = Saved(method=method, tensors=tensors, state=state, **description)
    _check_finite(folder / ADAPTER, tensors)
    return saved


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FolderError(f"{path} cannot be read as safetensors: {error}.") from error


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise FolderError(
                f"{path} holds {int((~torch.isfinite(tensor)).sum())} values that are NaN or infinite in {name!r}. "
                "The run that wrote it diverged; take an earlier checkpoint."
            )


def collect(adapters: Mapping[str, LowRank], trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """All tensors of an adaptation under the names they have in the file."""
    own = {f"{name}::{t}": v for name, adapter in adapters.items() for t, v in adapter.tensors().items()}
    return own | dict(trained)


def describe_layers(adapters: Mapping[str, LowRank]) -> dict[str, dict[str, Any]]:
    """Rank and shape of each layer, for the description file."""
    return {n: {"rank": a.rank, "shape": list(reversed(sizes(a.base)))} for n, a in adapters.items()}


def check_fits(folder: Path, saved: Saved, model: nn.Module) -> None:
    """Raise FolderError at the first layer of the folder that the model has not, or has in another shape."""
    modules = dict(model.named_modules())
    if any(isinstance(module, LowRank | FusedBlocks) for module in modules.values()):
        raise StateError("the model is adapted already. Undo, merge or reload it before loading an adapter into it.")
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
        if parameters[name].shape != saved.tensors[name].shape:
            shapes = f"{list(parameters[name].shape)}, saved was {list(saved.tensors[name].shape)}"
            raise FolderError(f"{folder} was made for another head: {name} is {shapes}. Check num_labels.")


def check_layers(folder: Path, saved: Saved, adapters: Mapping[str, LowRank]) -> None:
    """Raise FolderError at the first layer that only one of folder and adaptation has, or that has too many ranks."""
    for name in sorted(saved.layers.keys() ^ adapters.keys()):
        where = "the folder, not the model" if name in saved.layers else "the model, not the folder"
        raise FolderError(f"{folder} was made for another adaptation: {name} is adapted in {where}.")
    for name, adapter in adapters.items():
        rank = saved.layers[name]["rank"]
        if not 0 <= rank <= adapter.rank:
            raise FolderError(f"{folder}: {name} has {rank} ranks saved, and at most {adapter.rank} are possible here.")


def copy_layers(folder: Path, saved: Saved, adapters: Mapping[str, LowRank]) -> None:
    """Copy the saved tensors of the layers alone, not of what trained beside them."""
    own = collect(adapters, {})
    _copy(folder, {name: saved.tensors[name] for name in saved.tensors.keys() & own.keys()}, own)


def copy_in(folder: Path, saved: Saved, adapters: Mapping[str, LowRank], trained: Mapping[str, nn.Parameter]) -> None:
    """Copy saved tensors into an adaptation of the same layers and ranks."""
    _copy(folder, saved.tensors, collect(adapters, trained))


@torch.no_grad()
def _copy(folder: Path, saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Copy by name. Names and shapes must match exactly; nothing is copied unless all do."""
    if own.keys() != saved.keys():
        missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
        raise FolderError(f"{folder / ADAPTER} does not hold what it should: missing {missing[:3]}, extra {extra[:3]}.")
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape:
            raise FolderError(f"{folder / ADAPTER}: {name} is {list(saved[name].shape)}, not {list(tensor.shape)}.")
    for name, tensor in own.items():
        tensor.copy_(saved[name])
