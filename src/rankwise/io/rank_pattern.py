"""A learned allocation as the settings of an ordinary LoRA run elsewhere: for peft.LoraConfig, or for axolotl."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.adapter import LowRank
from rankwise.base_layers import Block
from rankwise.errors import ConfigError, StateError
from rankwise.io.atomic import replaced_file
from rankwise.io.plain_names import targets

# what axolotl calls the fields of peft.LoraConfig
_AXOLOTL = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "target_modules": "lora_target_modules",
    "rank_pattern": "lora_rank_pattern",
    "alpha_pattern": "lora_alpha_pattern",
}


def write_rank_pattern(path: Path, model: nn.Module, adapters: Mapping[str, LowRank]) -> None:
    """Write the live ranks: .json holds arguments of peft.LoraConfig, .yaml and .yml fields of an axolotl config."""
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise ConfigError(f"{path}: .json is for peft.LoraConfig, .yaml for axolotl; {path.suffix!r} is neither.")
    config = allocation(model, adapters)
    with replaced_file(path) as file:
        if path.suffix == ".json":
            file.write(json.dumps(config, indent=1) + "\n")
        else:
            import yaml  # only here: importing rankwise should not wait for it

            axolotl = {"adapter": "lora"} | {_AXOLOTL[name]: value for name, value in config.items()}
            file.write(yaml.safe_dump(axolotl, sort_keys=False, allow_unicode=True))


def allocation(model: nn.Module, adapters: Mapping[str, LowRank]) -> dict[str, Any]:
    """Arguments of peft.LoraConfig with the live rank of every layer, and alpha = rank: a scale of 1 everywhere.

    Layers without a rank are no targets. Raises StateError if none has one.
    """
    ranks = ordered(live_ranks(adapters))
    if not ranks:
        raise StateError("no layer has a rank left, so there is no allocation to start from.")
    largest = max(ranks.values())
    return {
        "r": largest,
        "lora_alpha": largest,
        "target_modules": targets(model, ranks),
        "rank_pattern": ranks,
        "alpha_pattern": dict(ranks),
    }


def live_ranks(adapters: Mapping[str, LowRank]) -> dict[str, int]:
    """Live ranks by path in the base model, the blocks of a fused layer together."""
    ranks: Counter[str] = Counter()
    for name, adapter in adapters.items():
        ranks[name.partition("[")[0] if isinstance(adapter.base, Block) else name] += int(adapter.live.sum())
    return dict(ranks)


def ordered(ranks: Mapping[str, int]) -> dict[str, int]:
    """Layers with a rank, longest path first: to PEFT a key is every path that ends in it, and the first counts."""
    return {path: ranks[path] for path in sorted(ranks, key=len, reverse=True) if ranks[path]}
