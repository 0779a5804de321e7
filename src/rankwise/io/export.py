"""Every low-rank method leaves as a plain LoRA: its live factors folded into two matrices whose scale is 1.

    A = down                     (r, d_in)
    B = out ⊙ up · diag(scale · gate)       (d_out, r)       Δ = B A

portable   all layers have one rank R, zeros below their own, and no patterns: engines that read one scale for the whole
           folder, or stack layers, read the same Δ as PEFT
compact    true ranks in rank_pattern and alpha_pattern, layers without a rank left out: the smaller file, for PEFT

The blocks of one fused layer leave as one LoRA of it: block-diagonal B, stacked A.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from rankwise.adapter import LowRank
from rankwise.base_layers import is_transposed
from rankwise.distributed import is_first, refuse_split
from rankwise.errors import ConfigError, StateError
from rankwise.io import model_card, peft_format
from rankwise.io.peft_format import PREFIX, PeftFolder, lora_config, tensor_name
from rankwise.io.plain_names import modules_to_save, refuse_shared, targets
from rankwise.io.rank_pattern import ordered
from rankwise.plain import Plain
from rankwise.surgery import regrown_in
from rankwise.updates import updates

Layout = Literal["portable", "compact"]

HEADS_REFUSED = "modules_to_save: vLLM and llama.cpp refuse a folder with trained heads, SGLang and TGI pass over them."
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what its --max-lora-rank takes


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and what its readers should know."""

    folder: Path
    layout: Layout
    rank: int  # R of the portable layout, the largest of the compact one
    ranks: dict[str, int]  # live ranks by path in the base model
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        live = sum(1 for rank in self.ranks.values() if rank)
        size = sum(f.stat().st_size for f in self.folder.iterdir() if f.name in peft_format.FILES)
        first = f"{self.folder}: {self.layout} LoRA of rank {self.rank}, {live} of {len(self.ranks)} layers live, "
        return "\n".join([f"{first}{size / 2**20:.1f} MiB", *(f"- {note}" for note in self.notes)])


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How to export."""

    layout: Layout = "portable"
    """One rank for every engine ("portable"), or each layer's own for PEFT and transformers ("compact")."""
    rank: int | None = None
    """R of the portable layout; None means the smallest that vLLM accepts."""
    heads: bool = False
    """Whether task heads that trained go with it, as PEFT's modules_to_save."""
    base_model: str | None = None
    """The base model's id on the hub, where the model was loaded from a folder."""
    revision: str | None = None
    """Of the base model on the hub, where it was not its main one."""

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise ConfigError(f"layout={self.layout!r} is none of {list(get_args(Layout))}.")
        if self.rank is not None and self.layout == "compact":
            raise ConfigError(f"rank={self.rank} is of the portable layout; a compact one has every layer's own rank.")
        if self.base_model is not None and not model_card.HUB_ID.fullmatch(self.base_model):
            raise ConfigError(f"base_model={self.base_model!r} is no id on the hub, such as 'owner/name'.")


def export_lora(
    folder: Path, model: nn.Module, adapters: Mapping[str, LowRank], trained: Iterable[str], wanted: Wanted
) -> Exported:
    """Write the adapters of `model` as a plain LoRA folder, whole or not at all; `trained` names what else trained.

    Raises StateError if nothing is low-rank here, ConfigError for a rank below what is live.
    """
    if not adapters:
        raise StateError(
            "there is no low-rank adapter to export: the method has none, or they were merged or taken out. "
            "merge() and save_pretrained() write the whole model."
        )
    refuse_split(model, "exporting")
    plain = updates(adapters)
    _check_finite(plain)
    refuse_shared(model, plain)
    rank = _rank(plain, wanted)
    heads = modules_to_save(model, trained, plain) if wanted.heads else {}
    laid_out = (
        {path: update.padded(rank) for path, update in plain.items()} if wanted.layout == "portable" else _alive(plain)
    )
    ranks = {path: update.rank for path, update in plain.items()}
    origin = model_card.origin_of(model, wanted.base_model)
    notes = [*_notes(adapters, rank, list(trained), wanted), *origin.notes]
    config = lora_config(
        rank,
        targets(model, laid_out),
        _patterns({path: update.rank for path, update in laid_out.items()}),
        task_type=origin.task_type if heads or not origin.has_head else None,
        base_model_name_or_path=origin.base_model,
        revision=None if origin.base_model is None else wanted.revision,
        lora_dropout=max(adapter.dropout for adapter in adapters.values()),
        fan_in_fan_out=any(is_transposed(adapter.base) for adapter in adapters.values()),
        modules_to_save=list(heads) or None,
    )
    if heads:
        warnings.warn(HEADS_REFUSED, stacklevel=3)  # of whoever called Adaptation.export
    if is_first():
        card = model_card.text(origin, config, ranks)
        peft_format.write(folder, PeftFolder(config, _tensors(laid_out, heads), card))
    return Exported(folder, wanted.layout, rank, ranks, notes)


def _check_finite(plain: Mapping[str, Plain]) -> None:
    for path, update in plain.items():
        if not all(torch.isfinite(factor).all() for factor in update):
            raise StateError(
                f"the update of {path} is NaN or infinite: the run diverged. Export an earlier checkpoint."
            )


def _tensors(plain: Mapping[str, Plain], heads: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """By the names that they have in the file."""
    tensors = {tensor_name(path, "A"): update.down for path, update in plain.items()}
    tensors |= {tensor_name(path, "B"): update.up for path, update in plain.items()}
    return tensors | {f"{PREFIX}{path}.{own}": t for path, state in heads.items() for own, t in state.items()}


def _alive(plain: Mapping[str, Plain]) -> dict[str, Plain]:
    alive = {path: update for path, update in plain.items() if update.rank}
    if not alive:
        raise StateError(
            "no layer has a rank left, and a LoRA of no layer is none. layout='portable' writes it as zeros."
        )
    return alive


def _rank(plain: Mapping[str, Plain], wanted: Wanted) -> int:
    largest = max(update.rank for update in plain.values())
    if wanted.layout == "compact":
        return largest
    if wanted.rank is None:
        return next((r for r in VLLM_RANKS if r >= largest), largest)
    if type(wanted.rank) is not int or wanted.rank < max(1, largest):
        widest = max(plain, key=lambda path: plain[path].rank)
        raise ConfigError(f"rank={wanted.rank!r} is below the {largest} ranks that live in {widest}; give at least it.")
    return wanted.rank


def _patterns(ranks: Mapping[str, int]) -> dict[str, int]:
    """Every layer's rank, unless all are one."""
    return ordered(ranks) if len(set(ranks.values())) > 1 else {}


def _notes(adapters: Mapping[str, LowRank], rank: int, trained: list[str], wanted: Wanted) -> list[str]:
    notes = []
    regrown = sum(regrown_in(adapter) for adapter in adapters.values())
    if regrown:
        notes.append(f"{regrown} ranks that the last allocation dropped had grown back and were left out.")
    if wanted.layout == "portable" and rank not in VLLM_RANKS:
        notes.append(f"vLLM has no --max-lora-rank {rank}; it takes {VLLM_RANKS}.")
    if trained and wanted.heads:
        notes.append(HEADS_REFUSED)
    elif trained:
        names = ", ".join(trained[:3]) + (", …" if len(trained) > 3 else "")
        notes.append(f"{names} trained in full and stayed behind; heads=True exports them for PEFT and transformers.")
    return notes
