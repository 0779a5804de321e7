"""Whether an exported folder means to its readers what it should.

PEFT and transformers really load it. For the engines that cannot run here, what each refuses and which scale it takes
are recomputed from the folder by its own rules (`engine_rules`), and the update is computed with that scale.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankwise.base_layers import kind_of
from rankwise.errors import ConfigError, FolderError, nearest, not_installed
from rankwise.io import peft_format
from rankwise.io.engine_rules import RULES, Rule
from rankwise.io.peft_format import PREFIX, PeftFolder
from rankwise.plain import Plain

SHARE = 1e-3  # of an update, and of its effect: what an engine may be off, and still read the folder as meant

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Reference:
    """What the adapted model computes: its logits, and the update of each layer."""

    logits: Tensor
    updates: Mapping[str, Plain]


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
    engines: Sequence[str] | None = None,
) -> list[Verdict]:
    """One verdict for each engine. `model` is the base with its head; it is put into evaluation mode, no more.

    Without a reference the engines are compared with PEFT. One agrees when no update is off by more than a thousandth,
    and no logit by more than a thousandth of what the adapter changes, or 1e-5 of the largest. Raises ConfigError
    without PEFT or for inputs that the model does not take, FolderError for a broken folder.
    """
    engines = list(READERS) if engines is None else engines
    unknown = [engine for engine in engines if engine not in READERS]
    if unknown:
        raise ConfigError(f"unknown engine {unknown[0]!r}; known are {list(READERS)}.{nearest(unknown[0], READERS)}")
    if find_spec("peft") is None:
        raise ConfigError(not_installed("verify", "peft", "peft"))
    content = peft_format.read(folder)
    if not content.pairs():
        raise FolderError(f"{folder} holds no lora_A and lora_B of a linear layer. Is it a LoRA?")
    absent = sorted(content.pairs().keys() - set(linear_layers(model)))
    if absent:
        raise FolderError(f"{folder} adapts {absent[0]}, and the model has no such linear layer. Is it another model?")
    base = logits_of(model.eval(), inputs)
    expected = reference or _by_peft(content, folder, model, inputs)
    if isinstance(expected, str):
        raise FolderError(f"PEFT does not read {folder} ({expected}). Give what to compare it with.")
    change = float((expected.logits - base).abs().max())
    limit = max(SHARE * change, 1e-5 * float(expected.logits.abs().max()))
    verdicts = []
    for engine in engines:
        got = READERS[engine](content, folder, model, inputs)
        verdicts.append(Verdict(engine, got) if isinstance(got, str) else _judged(engine, got, expected, limit))
    return verdicts


def linear_layers(model: nn.Module) -> list[str]:
    """Paths of the layers that a LoRA can adapt."""
    return [path for path, module in model.named_modules() if path and kind_of(module) is not None]


def _judged(engine: str, got: Reference, expected: Reference, limit: float) -> Verdict:
    difference = float((got.logits - expected.logits).abs().max())
    errors = {
        path: _error(got.updates.get(path), expected.updates.get(path)) for path in {**expected.updates, **got.updates}
    }
    worst = max(errors, key=errors.__getitem__)
    agrees = difference <= limit and errors[worst] <= SHARE
    return Verdict(engine, None, difference, worst, errors[worst], agrees)


def _error(got: Plain | None, expected: Plain | None) -> float:
    """‖Δ − Δ_expected‖ / ‖Δ_expected‖; a layer that one of them leaves out has Δ = 0 there."""
    size = 0.0 if expected is None else float(_delta(expected).norm())
    off = _delta(got) - _delta(expected) if got and expected else _delta(got or expected)
    return float(off.norm()) / size if size else float("inf") if off.any() else 0.0


def _delta(plain: Plain | None) -> Tensor:
    assert plain is not None  # one of the two has the layer
    return plain.up.float() @ plain.down.float()


def logits_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """The first thing that a model gives, in float32: the logits of one with a head.

    Raises ConfigError if the model cannot compute anything from the inputs.
    """
    try:
        first: Tensor = model(**inputs)[0]
    except (LookupError, ValueError, TypeError, RuntimeError, AttributeError, AssertionError) as error:
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        raise ConfigError(
            f"a {type(model).__name__} computes nothing from {shapes} ({_reason(error)}). Call "
            "rankwise.io.verify.verify with inputs that it takes, or leave the verifying out."
        ) from error
    return first.float()


def _by_peft(content: PeftFolder, folder: Path, model: nn.Module, inputs: Inputs) -> Reference | str:
    from peft import PeftModel  # an optional package, which takes seconds to import

    try:
        adapted = PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    except (ValueError, TypeError, RuntimeError, KeyError, OSError) as error:
        return _reason(error)
    return Reference(logits_of(adapted, inputs), _updates_of(adapted))


def _by_transformers(content: PeftFolder, folder: Path, model: nn.Module, inputs: Inputs) -> Reference | str:
    if not isinstance(model, PreTrainedModel):
        return f"a {type(model).__name__} is no model of transformers"
    adapted = copy.deepcopy(model)
    try:
        adapted.load_adapter(str(folder))
    except (ValueError, TypeError, RuntimeError, KeyError, OSError) as error:
        return _reason(error)
    return Reference(logits_of(adapted.eval(), inputs), _updates_of(adapted))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _updates_of(model: nn.Module) -> dict[str, Plain]:
    """What PEFT's layers of a model really hold, their scale folded in."""
    from peft.tuners.lora import LoraLayer

    updates = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            updates[name.removeprefix(PREFIX)] = Plain(B * layer.scaling["default"], A)
    return updates


def _by_rule(rule: Rule, content: PeftFolder, folder: Path, model: nn.Module, inputs: Inputs) -> Reference | str:
    reading = rule(content, linear_layers(model))
    if reading.refused:
        return "; ".join(reading.refused)
    found = content.pairs()
    updates = {path: Plain(found[path].up * scale, found[path].down) for path, scale in reading.scales.items()}
    with _adapted(model, updates):
        return Reference(logits_of(model, inputs), updates)


READERS: dict[str, Callable[[PeftFolder, Path, nn.Module, Inputs], Reference | str]] = {
    "peft": _by_peft,
    "transformers": _by_transformers,
    **{engine: partial(_by_rule, rule) for engine, rule in RULES.items()},
}
"""Engine -> what it makes of a folder: the adapted model's logits and updates, or why it refuses."""


@contextmanager
def _adapted(model: nn.Module, updates: Mapping[str, Plain]) -> Iterator[None]:
    """Within the block each layer adds its update of x to what it gives."""
    handles = [model.get_submodule(path).register_forward_hook(_branch(plain)) for path, plain in updates.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _branch(plain: Plain) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    def add(layer: nn.Module, given: tuple[Tensor], y: Tensor) -> Tensor:
        x = given[0]
        return y + (x.to(plain.down.dtype) @ plain.down.T @ plain.up.T).to(y.dtype)

    return add
