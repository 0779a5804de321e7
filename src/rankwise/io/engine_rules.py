"""How engines that need not be installed here read a LoRA folder: what each refuses, and the scale it applies.

Each rule is one function from the folder, and from the paths of the base model's linear layers, to a Reading. vLLM,
SGLang and TGI take one scale for the whole folder; llama.cpp divides by the rank of each tensor; none reads patterns.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from rankwise.io.peft_format import PeftFolder
from rankwise.io.untrusted import brief
from rankwise.plain import Plain

MOST_RANK_OF_VLLM = 512  # the largest --max-lora-rank

Paths = Collection[str]


@dataclass(frozen=True)
class Reading:
    """What one engine makes of a folder: its reasons to refuse it, and the scale of B A for each layer it adapts."""

    refused: list[str]
    scales: dict[str, float] = field(default_factory=dict)


def vllm(folder: PeftFolder, layers: Paths) -> Reading:
    config = folder.config
    refused = _missing(config, "r", "lora_alpha", "target_modules") + _unknown_tensors(folder)
    if refused:
        return Reading(refused)
    if config["r"] > MOST_RANK_OF_VLLM:
        refused.append(f"r={config['r']} is above its largest --max-lora-rank, {MOST_RANK_OF_VLLM}")
    if config.get("modules_to_save"):
        refused.append("it supports no modules_to_save")
    if config.get("use_dora"):
        refused.append("it supports no DoRA")
    if config.get("bias", "none") != "none":
        refused.append(f"it supports no bias={config['bias']!r}")
    return Reading(refused, _everywhere(folder, _global_scale(config, rank_stabilized=True)))


def sglang(folder: PeftFolder, layers: Paths) -> Reading:
    config, pairs = folder.config, folder.pairs()
    refused = _missing(config, "r", "lora_alpha", "target_modules")
    if refused:
        return Reading(refused)
    if config.get("peft_type") != "LORA":
        refused.append(f"peft_type={config.get('peft_type')!r} is not LORA")
    for fused in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):  # their A are stacked into one
        refused += _unequal(_siblings(pairs, fused), f"it stacks {', '.join(fused)}, which")
    for parent, found in _siblings(pairs, ("q_proj", "k_proj", "v_proj")).items():
        if not any(path.endswith(".q_proj") for path in found):
            refused.append(f"it expects a q_proj wherever k_proj or v_proj is adapted, and {parent} has none")
            break
    return Reading(refused, _everywhere(folder, _global_scale(config, rank_stabilized=False)))


def tgi(folder: PeftFolder, layers: Paths) -> Reading:
    config, pairs = folder.config, folder.pairs()
    refused = _missing(config, "r", "lora_alpha", "target_modules")
    if refused:
        return Reading(refused)
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in pairs:
        kinds[_without_numbers(path)].append(path)
    refused = _unequal({kind: {p: pairs[p] for p in paths} for kind, paths in kinds.items()}, "it stacks layers that")
    scales = _everywhere(folder, _global_scale(config, rank_stabilized=True))
    for path in layers:  # a kind that is missing in any block is dropped in all
        if path not in pairs:
            scales = {p: s for p, s in scales.items() if _without_numbers(p) != _without_numbers(path)}
    return Reading(refused, scales)


def llama_cpp(folder: PeftFolder, layers: Paths) -> Reading:
    config = folder.config
    refused = _missing(config, "lora_alpha") + _unknown_tensors(folder)
    if refused:
        return Reading(refused)
    alpha = config["lora_alpha"]
    ranks = {path: pair.rank for path, pair in folder.pairs().items() if pair.rank}
    return Reading([], {path: alpha / rank if alpha else 1.0 for path, rank in ranks.items()})


Rule = Callable[[PeftFolder, Paths], Reading]

RULES: dict[str, Rule] = {
    "vllm": vllm,
    "sglang": sglang,
    "tgi": tgi,
    "llama.cpp": llama_cpp,
}


def _missing(config: Mapping[str, object], *keys: str) -> list[str]:
    """What is not there or of no use, as a reason."""
    absent = [key for key in keys if config.get(key) is None]
    if absent:
        return [f"adapter_config.json lacks {', '.join(absent)}"]
    rank, alpha = config["r"] if "r" in keys else 1, config["lora_alpha"]
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        return [f"r={brief(rank)} and lora_alpha={brief(alpha)} are no rank and no number"]
    return []


def _unknown_tensors(folder: PeftFolder) -> list[str]:
    others = sorted(folder.others())
    return [f"it knows no tensor {others[0]}, one of {len(others)} that are no lora_A or lora_B"] if others else []


def _global_scale(config: Mapping[str, object], *, rank_stabilized: bool) -> float:
    rank, alpha = config["r"], config["lora_alpha"]
    assert isinstance(rank, int) and isinstance(alpha, int | float)
    return alpha / (math.sqrt(rank) if rank_stabilized and config.get("use_rslora") else rank)


def _everywhere(folder: PeftFolder, scale: float) -> dict[str, float]:
    return dict.fromkeys(folder.pairs(), scale)


def _without_numbers(path: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".*", path)


def _siblings(pairs: Mapping[str, Plain], names: Collection[str]) -> dict[str, dict[str, Plain]]:
    """The layers of these names, by the module that they are in."""
    found: dict[str, dict[str, Plain]] = defaultdict(dict)
    for path, pair in pairs.items():
        parent, _, own = path.rpartition(".")
        if own in names:
            found[parent][path] = pair
    return found


def _unequal(groups: Mapping[str, Mapping[str, Plain]], what: str) -> list[str]:
    """The first group whose layers differ in rank, as a reason."""
    for group, pairs in groups.items():
        ranks = sorted({pair.rank for pair in pairs.values()})
        if len(ranks) > 1:
            return [f"{what} have the ranks {', '.join(map(str, ranks))} in {group}"]
    return []
