"""Whether an exported folder means to its readers what it should.

PEFT and transformers really load it. For the engines that cannot run here, what each refuses and which scale it takes
are recomputed from the folder by its own rules (`engine_rules`), and the update is computed with that scale.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.base_layers import kind_of
from rankwise.errors import ConfigError, FolderError
from rankwise.io import peft_format
from rankwise.io.engine_rules import RULES, Reading
from rankwise.io.peft_format import PREFIX, Pair, PeftFolder

ENGINES = ("peft", "transformers", *RULES)

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Reference:
    """What the adapted model computes: its logits, and the update of each layer as B A."""

    logits: Tensor
    pairs: Mapping[str, Pair]


@dataclass(frozen=True)
class Verdict:
    """What became of the folder in one engine."""

    engine: str
    refused: str | None = None  # why
    difference: float = 0.0  # the largest of any logit
    worst: str = ""  # the layer whose update is furthest off
    error: float = 0.0  # of that update: ‖Δ − Δ_reference‖ / ‖Δ_reference‖
    agrees: bool = False


@torch.no_grad()
def verify(
    folder: Path,
    model: nn.Module,
    inputs: Inputs,
    reference: Reference | None = None,
    engines: Sequence[str] = ENGINES,
) -> list[Verdict]:
    """One verdict for each engine. `model` is the base with its head; it is put into evaluation mode, no more.

    Without a reference the engines are compared with PEFT. Logits agree when they differ by less than a thousandth of
    what the adapter changes, or 1e-5 of the largest. Raises ConfigError without PEFT, FolderError for a broken folder.
    """
    unknown = [engine for engine in engines if engine not in ENGINES]
    if unknown:
        raise ConfigError(f"unknown engine {unknown[0]!r}; known are {list(ENGINES)}.")
    if find_spec("peft") is None:
        raise ConfigError("verifying reads the folder through PEFT, which is not installed: pip install peft")
    content = peft_format.read(folder)
    layers = [path for path, module in model.named_modules() if path and kind_of(module) is not None]
    absent = sorted(content.pairs().keys() - set(layers))
    if absent:
        raise FolderError(f"{folder} adapts {absent[0]}, and the model has no such linear layer. Is it another model?")
    base = logits_of(model.eval(), inputs)
    expected = reference or _by_peft(folder, model, inputs)
    limit = max(1e-3 * float((expected.logits - base).abs().max()), 1e-5 * float(expected.logits.abs().max()))
    verdicts = []
    for engine in engines:
        if engine in RULES:
            reading = RULES[engine](content, layers)
            if reading.refused:
                verdicts.append(Verdict(engine, "; ".join(reading.refused)))
                continue
            got = _by_rule(content, reading, model, inputs)
        else:
            got = (_by_peft if engine == "peft" else _by_transformers)(folder, model, inputs)
        verdicts.append(_judged(engine, got, expected, limit))
    return verdicts


def _judged(engine: str, got: Reference, expected: Reference, limit: float) -> Verdict:
    difference = float((got.logits - expected.logits).abs().max())
    errors = {path: _error(got.pairs.get(path), expected.pairs.get(path)) for path in {**expected.pairs, **got.pairs}}
    worst = max(errors, key=errors.__getitem__)
    return Verdict(engine, None, difference, worst, errors[worst], difference <= limit)


def _error(got: Pair | None, expected: Pair | None) -> float:
    """‖Δ − Δ_expected‖ / ‖Δ_expected‖; a layer that one of them leaves out has Δ = 0 there."""
    if expected is None:
        return 0.0 if got is None or not _delta(got).any() else float("inf")
    wanted = _delta(expected)
    off = wanted if got is None else _delta(got) - wanted
    return float(off.norm() / wanted.norm()) if wanted.any() else float(off.norm() and torch.inf)


def _delta(pair: Pair) -> Tensor:
    return pair.B.float() @ pair.A.float()


def logits_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """The first thing that a model gives, in float32: the logits of one with a head."""
    first: Tensor = model(**inputs)[0]
    return first.float()


def _by_peft(folder: Path, model: nn.Module, inputs: Inputs) -> Reference:
    from peft import PeftModel  # an optional package, which takes seconds to import

    adapted = PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    return Reference(logits_of(adapted, inputs), _pairs_of(adapted))


def _by_transformers(folder: Path, model: Any, inputs: Inputs) -> Reference:
    adapted = copy.deepcopy(model)
    adapted.load_adapter(str(folder))
    return Reference(logits_of(adapted.eval(), inputs), _pairs_of(adapted))


def _pairs_of(model: nn.Module) -> dict[str, Pair]:
    """What PEFT's layers of a model really hold, their scale folded in."""
    from peft.tuners.lora import LoraLayer

    pairs = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            pairs[name.removeprefix(PREFIX)] = Pair(A, B * layer.scaling["default"])
    return pairs


def _by_rule(content: PeftFolder, reading: Reading, model: nn.Module, inputs: Inputs) -> Reference:
    pairs = {
        path: Pair(p.A, p.B * reading.scales[path]) for path, p in content.pairs().items() if path in reading.scales
    }
    with _adapted(model, pairs):
        return Reference(logits_of(model, inputs), pairs)


@contextmanager
def _adapted(model: nn.Module, pairs: Mapping[str, Pair]) -> Iterator[None]:
    """Within the block each layer adds B A x to what it gives."""
    handles = [model.get_submodule(path).register_forward_hook(_branch(pair)) for path, pair in pairs.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _branch(pair: Pair) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    def add(layer: nn.Module, given: tuple[Tensor], y: Tensor) -> Tensor:
        x = given[0]
        return y + (x.to(pair.A.dtype) @ pair.A.T @ pair.B.T).to(y.dtype)

    return add
