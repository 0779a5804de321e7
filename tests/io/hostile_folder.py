"""The parts that ways to break a saved adapter are made of."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Spoil = Callable[[Path], object]
DESCRIPTION, ADAPTER, STATE = FILES = ("rankwise.json", "adapter.safetensors", "state.safetensors")
Cases = Iterator[tuple[str, str, Spoil]]
GOOD = ("lora", "adalora", "aflora")  # the good folders; the last two were saved in the middle of a run
LAYER = "0"  # a layer of the toy model, 10 → 16
CANARY = "canary"  # a file beside the folder that only code from the folder would write


class Payload:
    """Unpickled, it writes the canary."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder.parent / CANARY}"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def length_of(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little")


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], file: str = ADAPTER) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file)


def change_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], file: str = ADAPTER) -> None:
    change_tensors(folder, lambda tensors: tensors.update({name: change(tensors[name])}), file)


def describe(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / DESCRIPTION
    data = copy.deepcopy(json.loads(path.read_text()))
    change(data)
    path.write_text(json.dumps(data))


def put(*keys: str) -> Callable[[Any], Spoil]:
    """put("run", "steps")(value) is what sets that entry of the description."""

    def to(value: Any) -> Spoil:
        def change(data: dict[str, Any]) -> None:
            for key in keys[:-1]:
                data = data[key]
            data[keys[-1]] = value

        return lambda folder: describe(folder, change)

    return to


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def put(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed.view(-1)[-1] = value
        return changed

    return put


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)


SHAPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "empty": lambda t: t[:0],
    "scalar": lambda t: t.flatten()[0],
    "longer": lambda t: torch.cat([t, t]),
    "deeper": lambda t: t[None],
}
