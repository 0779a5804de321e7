"""PEFT's folders, read as if rankwise had saved them: LoRA, AdaLoRA, pruned or not, and VeRA.

What such a folder cannot be taken for exactly is refused with the reason; nothing of it is left out in silence.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.base_layers import kind_of, sizes
from rankwise.errors import ConfigError, FolderError
from rankwise.io import peft_format
from rankwise.io.description import MOST_RANKS, fits, is_name
from rankwise.io.folder import Saved
from rankwise.io.peft_config import method_from
from rankwise.io.peft_format import CONFIG, PREFIX, WEIGHTS, PeftFolder
from rankwise.io.plain_names import with_ties
from rankwise.io.read_whole import read_whole
from rankwise.io.untrusted import brief
from rankwise.methods import VeRA
from rankwise.methods.low_rank import LowRankMethod


@dataclass(frozen=True)
class Layer:
    """A layer as rankwise describes it, and its tensors by their own names."""

    rank: int
    shape: tuple[int, int]  # (d_out, d_in)
    tensors: Mapping[str, Tensor]


# What the tensors of a layer are called in a file, and what they become.
ENDINGS = {
    "LORA": {".lora_A.weight": "A", ".lora_B.weight": "B"},
    "ADALORA": {".lora_A": "Q", ".lora_B": "P", ".lora_E": "lam"},
    "VERA": {".vera_lambda_b": "b", ".vera_lambda_d": "d"},
}
PROJECTIONS = {"base_model.vera_A": "A", "base_model.vera_B": "B"}

# Endings of tensors that belong to what cannot be represented.
FOREIGN = {
    r"\.lora_embedding_[AB]": "an embedding is adapted, and rankwise adapts linear layers",
    r"\.lora_magnitude_vector(\.weight)?": "it is a DoRA: its renormalised weight is no product of thin factors",
    r"\.lora_B\.bias": "B has a bias, which has no place in B A",
    r"\.base_layer\..*": "it holds weights of the base model",
    r"\.token_adapter\..*": "single rows of an embedding were trained",
}


def read(folder: Path, model: nn.Module | None) -> Saved:
    """Read and check a PEFT folder. Raises FolderError, naming the file and the reason.

    A VeRA does not say how wide the inputs of its layers are; the model that it is for does.
    """
    return read_whole(folder, lambda place: _read(place, model))


@dataclass(frozen=True)
class Outline:
    """What such a folder says of its model, and which model that is."""

    layers: list[str]
    trained: dict[str, Tensor]  # in full, by parameter name
    base: str | None  # a hub id or a folder
    revision: str | None  # of it
    tells_widths: bool  # of its layers' inputs; a VeRA does not


def outline(folder: Path) -> Outline:
    """What can be said of the folder without its model. Raises FolderError."""
    content = read_whole(folder, peft_format.read)
    kind, _, factors, trained = _parts(folder, content)
    base, revision = (_named(content.config, name) for name in ("base_model_name_or_path", "revision"))
    return Outline(list(factors), trained, base, revision, kind != "VERA")


def _parts(
    folder: Path, content: PeftFolder
) -> tuple[str, dict[str, Tensor], dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The kind of the folder, what VeRA's layers share, the tensors of each layer, and what trained in full."""
    kind = content.config.get("peft_type")
    if not isinstance(kind, str) or kind not in ENDINGS:
        raise FolderError(f"{folder / CONFIG}: peft_type={brief(kind)} cannot be read; {sorted(ENDINGS)} can.")
    shared = {name: tensor for name, tensor in content.tensors.items() if kind == "VERA" and name in PROJECTIONS}
    rest = {name: tensor for name, tensor in content.tensors.items() if name not in shared}
    factors, trained = _sorted_out(folder / WEIGHTS, rest, ENDINGS[kind])
    _check_trained(folder / WEIGHTS, content.config, trained)
    return kind, shared, factors, trained


def _named(config: Mapping[str, Any], field: str) -> str | None:
    name = config.get(field)
    return str(name) if is_name(name) else None


def _read(folder: Path, model: nn.Module | None) -> Saved:
    content, path = peft_format.read(folder), folder / WEIGHTS
    kind, shared, factors, trained = _parts(folder, content)
    method = _method(folder / CONFIG, content.config, list(factors), list(trained))
    modules = {} if model is None else dict(model.named_modules())
    layers = {name: _layer(path, name, own, _width(path, name, modules, kind)) for name, own in factors.items()}
    ranks = {name: layer.rank for name, layer in layers.items()}
    if sum(ranks.values()) > MOST_RANKS:
        raise FolderError(f"{path} has more than {MOST_RANKS:,} ranks.")
    _check_ranks(folder, content.config, method, ranks)
    if model is not None:
        _check_ties(path, content.config, model, trained)
    tensors = dict(trained) | _projections(path, method, layers, shared)
    for name, layer in layers.items():
        tensors |= {f"{name}::{own}": tensor for own, tensor in layer.tensors.items()}
        tensors[f"{name}::live"] = torch.ones(layer.rank, dtype=torch.bool)
    return Saved(
        method=method,
        base_model={"name": _named(content.config, "base_model_name_or_path"), "model_type": None},
        layers={name: {"rank": layer.rank, "shape": list(layer.shape)} for name, layer in layers.items()},
        trained=list(trained),
        frozen=[],
        tensors=tensors,
        run=None,
        state={},
    )


def _sorted_out(
    path: Path, tensors: Mapping[str, Tensor], endings: Mapping[str, str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The factors of each layer, and what trained in full beside them. Every tensor is one or the other."""
    layers: dict[str, dict[str, Tensor]] = {}
    trained: dict[str, Tensor] = {}
    for full, tensor in tensors.items():
        name = full.removeprefix(PREFIX)
        if name == full or not is_name(name) or "[" in name or "::" in name:
            raise FolderError(f"{path} does not hold what it should: {brief(full)} is no name that PEFT writes.")
        reason = next((r for ending, r in FOREIGN.items() if re.search(ending + r"\Z", name)), None)
        if reason is not None:
            raise FolderError(f"{path}: {brief(full)} cannot be represented: {reason}.")
        ending = next((e for e in endings if name.endswith(e)), None)
        if ending is not None:
            layers.setdefault(name.removesuffix(ending), {})[endings[ending]] = tensor
        elif re.search(r"\.(lora|vera)_[A-Za-z_]+(\.|\Z)", name):
            raise FolderError(f"{path}: {brief(full)} is no tensor of this kind of folder.")
        else:
            trained[name] = tensor
    if not layers:
        raise FolderError(f"{path} holds no adapted layer.")
    for layer, own in layers.items():
        absent = [ending for ending, name in endings.items() if name not in own]
        if absent:
            raise FolderError(f"{path} does not hold what it should: {brief(layer)} has no {absent[0]}.")
    return layers, trained


def _check_trained(path: Path, config: Mapping[str, Any], trained: Mapping[str, Tensor]) -> None:
    modules = config.get("modules_to_save") or []
    if not fits(modules, list[str]):
        raise FolderError(f"{path.with_name(CONFIG)}: modules_to_save={brief(modules)} is no list of names.")
    tied = config.get("ensure_weight_tying") is True  # PEFT then writes what is tied to those modules too
    for name in trained:
        if not tied and not any(f"{module}." in name for module in modules):
            raise FolderError(
                f"{path}: {brief(name)} cannot be represented: it is no factor, and in none of modules_to_save. "
                "(PEFT writes the embeddings of a vocabulary that was resized; save with save_embedding_layers=False.)"
            )


def _check_ties(path: Path, config: Mapping[str, Any], model: nn.Module, trained: dict[str, Tensor]) -> None:
    """PEFT gives each module of modules_to_save parameters of its own, also where the model's are tied; here they stay
    tied. Of two names with the same values one goes. Raises FolderError where the values would not be the same."""
    for name in list(trained):
        others = [other for other in with_ties(model, [name]) if other != name] if name in trained else []
        for other in others:
            if other in trained and torch.equal(trained[other], trained[name]):
                del trained[other]
            elif not config.get("ensure_weight_tying"):
                raise FolderError(
                    f"{path}: {brief(name)} trained apart from {brief(other)}, to which the model ties it, and "
                    "here they stay tied. Load the model with tie_word_embeddings=False."
                )


def _layer(path: Path, name: str, factors: Mapping[str, Tensor], d_in: int | None) -> Layer:
    """The layer, once its tensors agree. A λ of (r, 1) becomes (r,)."""
    shapes = {own: tuple(tensor.shape) for own, tensor in factors.items()}
    if any(len(shape) == 4 for shape in shapes.values()):
        raise FolderError(f"{path}: {brief(name)} is a convolution, and rankwise adapts linear layers.")
    match shapes:
        case {"A": (r, d_in_), "B": (d_out, rank)} if r == rank > 0:
            return Layer(r, (d_out, d_in_), factors)
        case {"P": (d_out, rank), "lam": (r, 1), "Q": (ranks, d_in_)} if r == rank == ranks:
            return Layer(r, (d_out, d_in_), {**factors, "lam": factors["lam"][:, 0]})
        case {"b": (d_out,), "d": (r,)} if d_in is not None and r > 0:
            return Layer(r, (d_out, d_in), factors)
    raise FolderError(f"{path}: the tensors of {brief(name)} have shapes that do not fit: {brief(shapes)}.")


def _width(path: Path, name: str, modules: Mapping[str, nn.Module], kind: str) -> int | None:
    """d_in of a layer whose tensors do not tell it."""
    if kind != "VERA":
        return None
    if not modules:
        raise FolderError(
            f"{path} does not say how wide the inputs of its layers are; its model does. Load it with "
            "rankwise.load(model, folder), or say `rankwise convert FOLDER OUT --model MODEL`."
        )
    module = modules.get(name)
    if module is None or kind_of(module) is None:
        raise FolderError(f"{path} was made for another architecture: the model has no linear layer {brief(name)}.")
    return sizes(module)[0]


def _projections(
    path: Path, method: LowRankMethod, layers: Mapping[str, Layer], shared: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """VeRA's A and B, saved with the first layer, as large as any layer needs; none where a seed draws them."""
    if not isinstance(method, VeRA) or not method.save_projections:
        return {}
    rows, columns = (max(sizes) for sizes in zip(*(layer.shape for layer in layers.values()), strict=True))
    least = {"A": (method.rank, columns), "B": (rows, method.rank)}
    cut = {}
    for full, own in PROJECTIONS.items():
        shape = tuple(shared[full].shape) if full in shared else ()
        if len(shape) != 2 or any(has < needs for has, needs in zip(shape, least[own], strict=True)):
            raise FolderError(f"{path}: {full} is {list(shape)}, and the layers need {list(least[own])} of it.")
        cut[f"{next(iter(layers))}::{own}"] = shared[full][: least[own][0], : least[own][1]]
    return cut


def _method(path: Path, config: Mapping[str, Any], names: list[str], trained: list[str]) -> LowRankMethod:
    try:
        method = method_from(config, names, trained, trains=False)
    except ConfigError as error:
        raise FolderError(f"{path}: {str(error)[:500]}") from error
    assert isinstance(method, LowRankMethod)
    return method


def _check_ranks(folder: Path, config: Mapping[str, Any], method: LowRankMethod, ranks: Mapping[str, int]) -> None:
    """The config says which rank each layer has; a scale is computed from it."""
    if method.name == "adalora":
        kept = dict.fromkeys(ranks, method.rank) | _kept(folder / CONFIG, config, method.rank)
    else:
        kept = {name: method.initial_rank(name) for name in ranks}
    for name in kept.keys() | ranks.keys():
        if kept.get(name) != ranks.get(name):
            raise FolderError(
                f"{folder}: {brief(name)} has rank {ranks.get(name)} in {WEIGHTS} and {kept.get(name)} in {CONFIG}."
            )


def _kept(path: Path, config: Mapping[str, Any], rank: int) -> dict[str, int]:
    """How many triplets of each layer PEFT's allocation kept, where there was one."""
    kept = {}
    for name, mask in (config.get("rank_pattern") or {}).items():
        if not name.endswith(".lora_E") or len(mask) != rank:
            raise FolderError(f"{path}: rank_pattern gives {brief(name)} {len(mask)} marks, not {rank} to a lora_E.")
        kept[name.removesuffix(".lora_E")] = sum(mask)
    return kept
