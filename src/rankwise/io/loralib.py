"""Checkpoints of loralib, the library of LoRA's authors: a state dict with `lora_A` and `lora_B` for each layer.

lora.Linear          lora_A (r, d_in)      lora_B (d_out, r)
lora.MergedLinear    lora_A (m r, d_in)    lora_B (rows of the m enabled blocks together, r)

The file has neither alpha nor the names of the blocks that a merged linear enabled: who has it says them. It is read by
torch's unpickler that makes tensors and plain containers only, or as safetensors.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import ConfigError, FolderError
from rankwise.io.description import MOST_RANKS, is_name
from rankwise.io.folder import FLOATS, MOST_TENSORS, Saved, read_tensors
from rankwise.io.peft_format import MOST_HEADER
from rankwise.io.peft_patterns import as_pattern
from rankwise.io.untrusted import brief, check_ordinary
from rankwise.methods import LoRA
from rankwise.methods.low_rank import endings

NESTED = ("model_state_dict", "state_dict")  # where training scripts put it


@dataclass(frozen=True)
class Loralib:
    """A checkpoint of loralib's, with what the file does not say."""

    path: str | Path
    """The file: what torch.save made of lora.lora_state_dict(model), or safetensors."""
    alpha: float
    """lora_alpha; the update is scaled by alpha/r."""
    blocks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The enabled blocks of merged linears, by the end of their name: {"c_attn": ["q", "v"]}."""
    trained: Sequence[str] = ()
    """Modules in the file that trained in full, such as a task head."""
    dropout: float = 0.0
    """lora_dropout, to train on with."""

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ConfigError(f"alpha={self.alpha} scales the update and must be positive.")
        for name, blocks in self.blocks.items():
            if isinstance(blocks, str) or not blocks or len(set(blocks)) != len(blocks):
                raise ConfigError(
                    f'blocks={{{name!r}: {blocks!r}}}: it takes the names of the blocks, such as ["q", "v"].'
                )

    def read(self) -> Saved:
        """The checkpoint as if rankwise had saved it. Raises FolderError, naming the file and the reason."""
        pairs, trained = self._sorted_out(_state_dict(Path(self.path)))
        layers: dict[str, tuple[Tensor, Tensor]] = {}
        for name, pair in pairs.items():
            layers |= self._split(name, pair)
        ranks = {name: len(A) for name, (A, _) in layers.items()}
        if sum(ranks.values()) > MOST_RANKS:
            raise FolderError(f"{self.path} has more than {MOST_RANKS:,} ranks.")
        most = max(ranks.values())
        tensors: dict[str, Tensor] = dict(trained)
        for name, (A, B) in layers.items():
            tensors |= {f"{name}::A": A, f"{name}::B": B, f"{name}::live": torch.ones(len(A), dtype=torch.bool)}
        return Saved(
            method=LoRA(
                rank=most,
                alpha=self.alpha,
                dropout=self.dropout,
                rank_pattern=as_pattern(ranks, most),
                targets=list(layers),
                also_train=list(self.trained),
            ),
            base_model={"name": None, "model_type": None},
            layers={n: {"rank": len(A), "shape": [len(B), A.shape[1]]} for n, (A, B) in layers.items()},
            trained=list(trained),
            frozen=[],
            tensors=tensors,
            run=None,
            state={},
        )

    def _sorted_out(self, state: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """The factors of each layer, and what trained in full. Every tensor is one or the other."""
        pairs: dict[str, dict[str, Tensor]] = {}
        trained: dict[str, Tensor] = {}
        for full, tensor in state.items():
            name = full.removeprefix("module.")  # of DistributedDataParallel
            match = re.fullmatch(r"(.+)\.lora_([AB])", name)
            if not is_name(name) or "[" in name or "::" in name or name in trained:
                raise FolderError(f"{self.path}: {brief(full)} is no name of a parameter.")
            if match is not None:
                pairs.setdefault(match[1], {})[match[2]] = tensor
            elif any(name == t or name.startswith(f"{t}.") for t in self.trained):
                trained[name] = tensor
            else:
                raise FolderError(
                    f"{self.path}: {brief(full)} is no factor of a low-rank update. If it trained in full, name its "
                    "module in Loralib(..., trained=[...]); a base model's weights have no place here: save "
                    "lora.lora_state_dict(model)."
                )
        if not pairs:
            raise FolderError(f"{self.path} holds no lora_A and lora_B.")
        return pairs, trained

    def _split(self, name: str, pair: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """A and B of the layer, or of each of its blocks."""
        if len(pair) != 2 or any(t.ndim != 2 or not t.numel() for t in pair.values()):
            shapes = {f"lora_{own}": list(tensor.shape) for own, tensor in pair.items()}
            raise FolderError(
                f"{self.path}: {brief(name)} has {brief(shapes)}, not lora_A (r, d_in) and lora_B (d_out, r)."
            )
        A, B = pair["A"], pair["B"]
        blocks = next((self.blocks[ending] for ending in endings(name) if ending in self.blocks), None)
        count = 1 if blocks is None else len(blocks)
        if len(A) != count * B.shape[1] or len(B) % count:
            raise FolderError(
                f"{self.path}: {brief(name)} has lora_A {list(A.shape)} and lora_B {list(B.shape)}: that is no "
                + (f"merged linear with blocks {list(blocks)}." if blocks else self._hint(name, A, B))
            )
        if blocks is None:
            return {name: (A, B)}
        parts = zip(blocks, A.chunk(count), B.chunk(count), strict=True)
        return {f"{name}[{block}]": (a, b) for block, a, b in parts}

    def _hint(self, name: str, A: Tensor, B: Tensor) -> str:
        end = name.rpartition(".")[2]
        count = len(A) // B.shape[1]
        return (
            f'plain linear. If it is a merged one, say which {count} blocks it enabled: blocks={{{end!r}: ["q", "v"]}}.'
        )


def _state_dict(path: Path) -> dict[str, Tensor]:
    check_ordinary(path)
    if path.suffix == ".safetensors":
        return read_tensors(path, path.parent, MOST_HEADER)
    _check_archive(path)
    content = _unpickled(path)
    for key in NESTED:
        if isinstance(content, dict) and set(content) >= {key} and isinstance(content[key], dict):
            content = content[key]
    if not isinstance(content, dict) or len(content) > MOST_TENSORS:
        raise FolderError(f"{path} holds {brief(type(content).__name__)}, not a state dict.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise FolderError(f"{path}: {brief(name)} is {brief(type(tensor).__name__)}, not a tensor by its name.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # one number for a whole matrix
            raise FolderError(
                f"{path}: {brief(name)} claims the shape {brief(list(tensor.shape))} without its numbers."
            )
        if tensor.dtype not in FLOATS:
            raise FolderError(f"{path}: {brief(name)} is of type {tensor.dtype}, which no adapter tensor is.")
    return content


def _check_archive(path: Path) -> None:
    """Raise FolderError unless it is what torch.save writes since version 1.6: an archive with nothing packed in it, so
    that what is in memory is no larger than what is on the disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FolderError(
            f"{path} is neither safetensors nor what torch.save writes since version 1.6 ({error}). If you trust it, "
            "load and save it once with a newer torch."
        ) from error
    pickled = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if len(entries) > 2 * MOST_TENSORS or pickled > MOST_HEADER or any(e.compress_type for e in entries):
        raise FolderError(f"{path} is packed, or lists more than any adapter has; torch.save writes no such file.")


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise FolderError(f"{path} cannot be read as a state dict: {said}") from error
