"""Finished adapters in their plain form, whatever method trained them: from a folder or a live adaptation, and back.

    Δ = up @ down        up (d_out, r), down (r, d_in), float32; dead ranks are gone

Nothing here changes a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adaptation import Adaptation
from rankwise.adapter import LowRank
from rankwise.base_layers import sizes
from rankwise.errors import FolderError, StateError
from rankwise.io import fitting, sources
from rankwise.io import folder as files
from rankwise.io.peft_patterns import as_pattern
from rankwise.methods.lora import LoRA
from rankwise.methods.low_rank import LowRankMethod
from rankwise.plain import Plain
from rankwise.surgery import regrown_in, shrink
from rankwise.updates import updates


@dataclass(frozen=True)
class Finished:
    """An adapter: its updates by module path, and what trained in full beside them by parameter name."""

    layers: dict[str, Plain]
    trained: dict[str, Tensor]


def read_finished(source: sources.Source, model: nn.Module, revision: str | None) -> Finished:
    """A saved adapter, of any format that `load` reads. Raises FolderError if it is broken or of another model."""
    folder, saved, _ = sources.opened(source, None, model, revision)
    fitting.check_fits(folder, saved, model)
    if not isinstance(saved.method, LowRankMethod):
        raise FolderError(f"{folder} holds a {saved.method.name} adapter, which has no low-rank form.")
    adapters = saved.method.build_saved(model, list(saved.layers))
    fitting.check_layers(folder, saved, adapters, {})
    shrink(adapters, saved.held())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    trained = {name: nn.Parameter(torch.empty_like(parameters[name])) for name in saved.trained}
    fitting.copy_in(folder, saved, adapters, trained)
    return finished(adapters, trained)


def finish(adaptation: Adaptation) -> Finished:
    """The adapter as it is now. Raises StateError if it was taken out or merged."""
    if not adaptation.adapters:
        raise StateError("the adaptation has no low-rank layers, or they were merged or taken out of its model.")
    return finished(adaptation.adapters, adaptation.trained)


@torch.no_grad()
def finished(adapters: Mapping[str, LowRank], trained: Mapping[str, nn.Parameter]) -> Finished:
    """Copies, so that training may go on. Raises StateError for ranks that were dropped and have grown back."""
    regrown = sum(regrown_in(adapter) for adapter in adapters.values())
    if regrown:
        raise StateError(
            f"{regrown} ranks that the last allocation dropped have grown back since: the adapter is not finished. "
            "Let its run end, or call compact(), which sets them to 0, and save it then."
        )
    layers = {path: weighted_sum([(part, 1.0)]) for path, part in updates(adapters).items()}
    return Finished(layers, {name: parameter.detach().clone() for name, parameter in trained.items()})


@torch.no_grad()
def weighted_sum(parts: Sequence[tuple[Plain, float]]) -> Plain:
    """Σ w Δ, exactly: ups and downs stand side by side, [w₁ up₁, w₂ up₂, …] @ [down₁; down₂; …].

    Where that makes more ranks than the matrix has, Δ itself and an identity say the same with fewer.
    """
    up = torch.cat([w * part.up for part, w in parts], dim=1)
    down = torch.cat([part.down for part, _ in parts])
    total = Plain(up, down)
    if total.rank <= min(total.shape):
        return total
    d_out, d_in = total.shape
    identity = torch.eye(min(d_out, d_in), dtype=up.dtype, device=up.device)
    return Plain(up @ down, identity) if d_in <= d_out else Plain(identity, up @ down)


def as_lora(adapter: Finished, base_model: Mapping[str, Any]) -> files.Saved:
    """The content of a native folder that holds the adapter as a LoRA of scale 1."""
    layers = {path: part for path, part in adapter.layers.items() if part.rank}
    if not layers:
        raise StateError("every rank of the adapter is dead: there is no update to save.")
    ranks = {path: part.rank for path, part in layers.items()}
    largest = max(ranks.values())
    pattern = as_pattern(ranks, largest)
    method = LoRA(rank=largest, targets=list(layers), rank_pattern=pattern, also_train=list(adapter.trained))
    tensors: dict[str, Tensor] = dict(adapter.trained)
    for path, part in layers.items():
        live = torch.ones(part.rank, dtype=torch.bool)
        tensors |= {f"{path}::A": part.down, f"{path}::B": part.up, f"{path}::live": live}
    return files.Saved(
        method=method,
        base_model=dict(base_model),
        layers={n: {"rank": p.rank, "shape": list(p.shape)} for n, p in layers.items()},
        trained=list(adapter.trained),
        frozen=[],
        tensors=tensors,
        run=None,
        state={},
    )


def check_finished(adapter: Finished, model: nn.Module) -> None:
    """Raise StateError at the first layer or trained parameter that the model has not, or has in another shape."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    for path, part in adapter.layers.items():
        if path not in modules or sizes(modules[path]) != part.shape[::-1]:
            raise StateError(f"the adapter has a layer {path!r} that the model has not, or has in another shape.")
    for name, tensor in adapter.trained.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise StateError(f"the adapter trained {name!r}, which the model has not, or has in another shape.")
