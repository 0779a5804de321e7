"""A plain LoRA folder as PEFT lays it out, which transformers, vLLM, SGLang, TGI and llama.cpp read too: its names.

adapter_config.json         what PEFT calls the settings; few, for an old PEFT raises at a key that it does not know
adapter_model.safetensors   base_model.model.<path>.lora_A.weight (r, d_in), ….lora_B.weight (d_out, r), in float32,
                            and base_model.model.<parameter> for what trained in full
README.md                   the model card, with front matter for the hub

Nothing here knows of methods or models.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from rankwise.errors import FolderError
from rankwise.io.atomic import replaced_files
from rankwise.io.folder import read_tensors, save_tensors
from rankwise.io.untrusted import read_json
from rankwise.plain import Plain

CONFIG, WEIGHTS, CARD = FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")
PREFIX = "base_model.model."
MOST_HEADER = 12 * 2**20  # bytes of the list of tensors


@dataclass(frozen=True)
class PeftFolder:
    """The content of such a folder: the config as it stands there, the tensors by their names in the file."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    card: str = ""

    def pairs(self) -> dict[str, Plain]:
        """The factors of each layer by its path, in the order of the file, without the scale that a reader makes of the
        config. A factor without its partner is left out."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            parsed = parse_name(name)
            if parsed is not None:
                found.setdefault(parsed[0], {})[parsed[1]] = tensor
        return {path: Plain(up=f["B"], down=f["A"]) for path, f in found.items() if len(f) == 2}

    def others(self) -> dict[str, Tensor]:
        """What is no factor of a linear layer: heads, embeddings, magnitudes."""
        return {name: tensor for name, tensor in self.tensors.items() if parse_name(name) is None}


def tensor_name(path: str, factor: Literal["A", "B"]) -> str:
    """The name in the file of one factor of the layer at `path` in the base model."""
    return f"{PREFIX}{path}.lora_{factor}.weight"


def parse_name(name: str) -> tuple[str, str] | None:
    """(path, "A" or "B"); None for what is no factor of a linear layer."""
    match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", name)
    return None if match is None else (match[1], match[2])


def read(folder: Path) -> PeftFolder:
    """Read a folder, without a judgement on what the config says. Raises FolderError, naming the file."""
    if not (folder / CONFIG).is_file():
        raise FolderError(f"{folder} is no PEFT folder: it has no {CONFIG}. `rankwise export` writes one.")
    return PeftFolder(read_json(folder / CONFIG, folder), read_tensors(folder / WEIGHTS, folder, MOST_HEADER))


def write(folder: Path, content: PeftFolder) -> None:
    """Write the folder, whole or not at all. Other files that it holds stay."""
    with replaced_files(folder, FILES) as staging:
        (staging / CONFIG).write_text(json.dumps(content.config, indent=2) + "\n", encoding="utf-8")
        save_tensors(content.tensors, staging / WEIGHTS)
        (staging / CARD).write_text(content.card, encoding="utf-8")


def lora_config(
    rank: int,
    target_modules: list[str] | str,
    patterns: Mapping[str, int],
    **others: Any,
) -> dict[str, Any]:
    """The config of a LoRA whose scale is 1 everywhere: alpha is the rank, for each layer and as a whole."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "target_modules": target_modules,
        "rank_pattern": dict(patterns),
        "alpha_pattern": dict(patterns),
        **others,
    }


def card(front: Mapping[str, Any], text: str) -> str:
    """A model card: YAML front matter, then Markdown."""
    import yaml  # only here: importing rankwise should not wait for it

    matter = yaml.safe_dump({k: v for k, v in front.items() if v is not None}, sort_keys=False, allow_unicode=True)
    return f"---\n{matter}---\n\n{text}"
