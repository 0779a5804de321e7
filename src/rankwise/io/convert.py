"""A saved adapter as one of another method: the same Δ in every layer, in other tensors. Needs no model.

to LoRA       Δ = B A             scale and vectors folded into B; dead ranks are gone
to AdaLoRA    Δ = P diag(λ) Q     a thin SVD: QR of both factors, SVD of the small core between them
to AFLoRA     Δ = B A             as LoRA's, with both vectors 1
to SoRA       Δ = (α/r) B A       as LoRA's, with all gates 1
to VeRA       refused: A and B are drawn from a seed, and two vectors between and behind them cannot be just any update
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from rankwise.adapter import LowRank, Method
from rankwise.errors import ConfigError, FolderError
from rankwise.io.description import method_from_dict
from rankwise.io.fitting import check_layers, copy_in
from rankwise.io.folder import Saved, collect
from rankwise.io.peft_patterns import as_pattern
from rankwise.methods import METHODS
from rankwise.methods.low_rank import LowRankMethod
from rankwise.plain import Plain
from rankwise.surgery import regrown_in, shrink
from rankwise.updates import update

MOST_NUMBERS = 2**30  # that are in no file: ranks that were pruned away, projections drawn from a seed


def convert(folder: Path, saved: Saved, to: Method | Mapping[str, Any]) -> tuple[Saved, list[str]]:
    """The adapter as one of the method `to`, and in words what was done. What trained in full stays as it is.

    `to` is a method with all its settings, or {"name": ...} with some; ranks that are not given are those there are.
    Raises ConfigError where the method cannot hold the update exactly, FolderError if the folder is broken.
    """
    if not isinstance(to, Method) and dict(to) == {"name": saved.method.name}:
        return saved, [f"it is a {saved.method.name} adapter already: nothing changes"]
    sources = _layers(folder, saved)
    plain = {name: _live(adapter) for name, adapter in sources.items()}
    words = _left_behind(saved, sources)
    if not isinstance(to, Method):
        words += [f"left out, for no rank of it lives: {name}" for name, part in plain.items() if not part.rank]
        plain = {name: part for name, part in plain.items() if part.rank}
        to = _fitting(to, _low_rank(saved.method).dropout, {name: part.rank for name, part in plain.items()})
    method = replace(_low_rank(to), targets=list(plain), exclude=None)
    targets = method.build_bare({name: _shape(saved, name) for name in plain})
    for name, adapter in targets.items():
        if plain[name].rank > adapter.rank:
            raise ConfigError(
                f"{name} has {plain[name].rank} ranks, more than the rank={adapter.rank} that the settings give "
                "it, and cutting them would change the update. Raise rank, or name it in rank_pattern."
            )
        adapter.take_over(plain[name])
    heads = {name: saved.tensors[name] for name in saved.trained}
    converted = replace(
        saved,
        method=method,
        layers={name: {"rank": adapter.rank, "shape": list(_shape(saved, name))} for name, adapter in targets.items()},
        frozen=[],
        tensors={**collect(targets, {}), **heads},
        run=None,
        state={},
    )
    return converted, [_summary(saved.method, method, plain, targets), *words]


def _layers(folder: Path, saved: Saved) -> dict[str, LowRank]:
    """The saved layers, on bases that have no weights."""
    method = _low_rank(saved.method)
    shapes = {name: _shape(saved, name) for name in saved.layers}
    size = sum(method.initial_rank(name) * sum(shape) for name, shape in shapes.items())
    if size > MOST_NUMBERS + 16 * sum(tensor.numel() for tensor in saved.tensors.values()):
        raise FolderError(f"{folder} describes layers of {size:,} numbers, and holds far fewer.")
    adapters = method.build_bare(shapes)
    check_layers(folder, saved, adapters, {})
    shrink(adapters, saved.held())
    own = {name: tensor for name, tensor in saved.tensors.items() if name not in saved.trained}
    copy_in(folder, replace(saved, tensors=own), adapters, {})
    return adapters


def _shape(saved: Saved, name: str) -> tuple[int, int]:
    d_out, d_in = saved.layers[name]["shape"]
    return d_out, d_in


def _live(adapter: LowRank) -> Plain:
    """Δ of the live ranks in float64, in as few ranks as the layer's shape allows."""
    plain = update(adapter, torch.float64)
    if plain.rank > min(plain.shape):
        P, sigma, Q = plain.svd()
        return Plain(P * sigma, Q)
    return plain


def _fitting(to: Mapping[str, Any], dropout: float, ranks: Mapping[str, int]) -> Method:
    """The method of that name, with room for exactly these ranks, and with the given settings."""
    if not ranks:
        raise ConfigError("no rank of any layer lives, so there is nothing to convert.")
    most = max(ranks.values())
    fitting: dict[str, Any] = {
        "rank": most,
        "rank_pattern": as_pattern(ranks, most),
        "dropout": dropout,
        "target_rank": max(1, int(sum(ranks.values()) / len(ranks) / 1.5)),  # the papers start with 1.5 × target_rank
    }
    known = {field.name for field in fields(METHODS[to["name"]])} if to.get("name") in METHODS else set()
    return method_from_dict({key: value for key, value in fitting.items() if key in known} | dict(to))


def _low_rank(method: Method) -> LowRankMethod:
    if not isinstance(method, LowRankMethod):
        raise ConfigError(f"{method.name} is no low-rank method, so nothing has an exact form in both it and another.")
    return method


def _left_behind(saved: Saved, sources: Mapping[str, LowRank]) -> list[str]:
    words = []
    regrown = sum(regrown_in(adapter) for adapter in sources.values())
    if regrown:
        words.append(f"{regrown} λ that had grown back behind the mask are gone with their ranks")
    if saved.run is not None:
        words.append(f"the old run, {saved.run['steps']} steps long, is left behind: a new one begins")
    if saved.frozen:
        words.append(f"{len(saved.frozen)} projections that had frozen train again")
    return words


def _summary(source: Method, method: Method, plain: Mapping[str, Plain], targets: Mapping[str, LowRank]) -> str:
    """What became what, and how far the float32 tensors are from the update that they stand for."""
    error = max(_distance(plain[name], adapter.factors().folded()) for name, adapter in targets.items())
    ranks = sum(part.rank for part in plain.values())
    return (
        f"{source.name} became {method.name}: {len(targets)} layers, {ranks} ranks; "
        f"no update differs by more than {error:.1e} of its size"
    )


def _distance(old: Plain, new: Plain) -> float:
    """‖Δ − Δ'‖_F / ‖Δ‖_F of two updates, without the full matrices."""
    size = old.norm()
    difference = Plain(torch.cat([old.up, -new.up], dim=1), torch.cat([old.down, new.down])).norm()
    return difference / size if size else difference
