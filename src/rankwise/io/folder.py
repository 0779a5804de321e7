"""The native adapter folder: everything an adaptation is, so that it can be used, continued or exported.

rankwise.json         format version, method and settings, base model, layers with their ranks and shapes, the run
adapter.safetensors   "<layer>::<tensor>" for tensors of adapters and parts, "<parameter>" for what trained in full
state.safetensors     the controller's state, when the method decides while it trains
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwise.adapter import LowRank, Method
from rankwise.base_layers import sizes
from rankwise.distributed import gather, is_first, local
from rankwise.errors import FolderError
from rankwise.io.atomic import replaced_files
from rankwise.io.description import FORMAT, method_as_dict, read_description
from rankwise.io.read_whole import read_whole
from rankwise.io.untrusted import brief, check_ordinary
from rankwise.part import Part

DESCRIPTION, ADAPTER, STATE = FILES = ("rankwise.json", "adapter.safetensors", "state.safetensors")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MOST_TENSORS = 12_288  # in one file: AdaLoRA on 2,000 layers; to list so many takes half a second
MOST_HEADER = 12 * 2**20  # bytes


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
    parts: list[str] = field(default_factory=list)  # names of what was added that is no low-rank layer

    @classmethod
    def of(
        cls,
        model: nn.Module,
        method: Method,
        adapters: Mapping[str, LowRank],
        parts: Mapping[str, Part],
        trained: Mapping[str, nn.Parameter],
        **run_state: Any,  # frozen, run, state
    ) -> "Saved":
        """What an adaptation holds. Every process of a group must call it."""
        layers = {n: {"rank": a.rank, "shape": list(reversed(sizes(a.base)))} for n, a in adapters.items()}
        tensors = whole(collect({**adapters, **parts}, trained))
        named: dict[str, Any] = {"parts": list(parts), "trained": list(trained)}
        return cls(method, describe_base(model), layers, tensors=tensors, **named, **run_state)

    def ranks(self) -> dict[str, int]:
        """Live rank of each layer, as the last allocation left it."""
        return {name: int(self.tensors[f"{name}::live"].sum()) for name in self.layers}

    def held(self) -> dict[str, int]:
        """Ranks that the tensors of each layer hold, dead ones included."""
        return {name: layer["rank"] for name, layer in self.layers.items()}


def write(folder: Path, saved: Saved) -> None:
    """Write the folder, whole or not at all, in the first process of a group only. Other files that it holds stay. What
    was written is read back first."""
    if not is_first():
        return
    description = {k: v for k, v in vars(saved).items() if k not in ("tensors", "state", "method")}
    description = {"format": FORMAT, "method": method_as_dict(saved.method), **description}
    with replaced_files(folder, FILES) as staging:
        (staging / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        save_tensors(saved.tensors, staging / ADAPTER)
        if saved.state:
            save_tensors(saved.state, staging / STATE)
        _read(staging)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error  # the disk refused


def read(folder: Path) -> Saved:
    """Read and check a native folder; nothing on the disk is changed, and another process may be replacing it.

    Tensors are mapped from the file, and read only when they are copied: a shape that does not fit costs no memory.
    Raises FolderError, naming the file and what is wrong with it.
    """
    return read_whole(folder, _read)


def _read(folder: Path) -> Saved:
    path = folder / DESCRIPTION
    if not os.path.lexists(path):
        raise FolderError(f"{folder} is no rankwise adapter: it has no {DESCRIPTION}. Give what save() or a run wrote.")
    description = read_description(path, folder)
    names = 16 * (len(description["layers"]) + len(description["parts"])) + len(description["trained"])
    most = min(MOST_HEADER, 2**16 + 2**10 * names)
    saved = Saved(tensors=read_tensors(folder / ADAPTER, folder, most), state={}, **description)
    _check_names(folder / ADAPTER, saved)
    if os.path.lexists(folder / STATE):
        saved.state.update(read_tensors(folder / STATE, folder, most))
    return saved


def read_tensors(path: Path, folder: Path, most: int) -> dict[str, Tensor]:
    check_ordinary(path, folder)
    try:
        with path.open("rb") as start:
            length, size = int.from_bytes(start.read(8), "little"), os.fstat(start.fileno()).st_size
            if not 2 <= length <= min(most, size - 8):
                raise FolderError(f"{path} cannot be read as safetensors: it claims a header of {length:,} bytes.")
            if start.read(length).count(b'"data_offsets"') > MOST_TENSORS:
                raise FolderError(f"{path} holds too many tensors. If it is yours, raise {__name__}.MOST_TENSORS.")
        with safe_open(path, "pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # maps, reads nothing
        for name, tensor in tensors.items():
            if tensor.dtype not in ((torch.bool,) if name.endswith("::live") else FLOATS):
                raise FolderError(f"{path}: {brief(name)} is of type {tensor.dtype}, which no adapter tensor is.")
        return tensors
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, FolderError):
            raise
        raise FolderError(f"{path} cannot be read as safetensors: {error}.") from error


def _check_names(path: Path, saved: Saved) -> None:
    """Every tensor is one that the description tells of, and every layer has its mask."""
    known = saved.layers.keys() | set(saved.parts)
    for name in saved.tensors.keys() - set(saved.trained):
        if name.rpartition("::")[0] not in known:
            raise FolderError(f"{path} does not hold what it should: extra {brief(name)}.")
    absent = [n for n in (*(f"{n}::live" for n in saved.layers), *saved.trained) if n not in saved.tensors]
    if absent:
        raise FolderError(f"{path} does not hold what it should: missing {brief(absent[:3])}.")
    for name, layer in saved.layers.items():
        if saved.tensors[f"{name}::live"].shape != (layer["rank"],):
            raise FolderError(f"{path}: {brief(name)} has another rank than the {layer['rank']} of {DESCRIPTION}.")
    for name in saved.frozen:
        layer_name, _, tensor = name.rpartition(".")
        if tensor == "live" or layer_name not in saved.layers or f"{layer_name}::{tensor}" not in saved.tensors:
            raise FolderError(f"{path} has no {brief(name)}, which {DESCRIPTION} lists as frozen.")


def collect(adapters: Mapping[str, LowRank | Part], trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """All tensors of an adaptation under the names they have in the file."""
    own = {f"{name}::{t}": v for name, adapter in adapters.items() for t, v in adapter.tensors().items()}
    return own | dict(trained)


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put together, on every process, what FSDP2 has spread over them."""
    given = [t.detach() for t in tensors.values()]
    return dict(zip(tensors, gather([local(t) for t in given], given), strict=True))


def describe_base(model: nn.Module) -> dict[str, Any]:
    """Name and kind of a transformers model, for the description file; None where it says nothing."""
    config = vars(model).get("config")
    if config is None:
        return {"name": None, "model_type": None}
    return {"name": config._name_or_path, "model_type": config.model_type}
