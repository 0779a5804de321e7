"""The description in a native adapter folder, checked by hand: every value has its type before it is used.

Nothing in it is ever looked up as code, run as a pattern, or taken for a path. What cannot be known without the model
(whether it has such layers, whether the tensors have their shapes) is checked in `folder`.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rankwise.adapter import Method
from rankwise.allocation.schedule import Epochs
from rankwise.errors import ConfigError, FolderError, nearest
from rankwise.io.untrusted import brief, read_json
from rankwise.methods import METHODS

FORMAT = 1
KEYS = ("format", "method", "base_model", "layers", "parts", "trained", "frozen", "run")
MOST_RANKS = 2**24  # of all layers together
LARGEST = 2**62  # of whole numbers


def method_as_dict(method: Method) -> dict[str, Any]:
    """{"name": ..., settings}; spans in epochs as text."""
    settings = {k: str(v) if isinstance(v, Epochs) else v for k, v in vars(method).items()}
    return {"name": method.name, **settings}


def method_from_dict(data: Mapping[str, Any]) -> Method:
    """The method a dict describes. Raises ConfigError for an unknown name or setting, with the nearest known one."""
    settings = dict(data)
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"unknown method {brief(name)}; known are {sorted(METHODS)}.{_nearest(name, METHODS)}")
    cls = METHODS[name]
    known = [f.name for f in fields(cls)]
    hints = get_type_hints(cls)
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"{name} has no setting {brief(key)}; it has {known}.{_nearest(key, known)}")
        if not fits(value, hints[key]):
            raise ConfigError(f"{key}={brief(value)} is of a type that {name} does not take there.")
    return cls(**settings)


def _nearest(word: object, known: Any) -> str:
    return nearest(word, known) if isinstance(word, str) and len(word) < 100 else ""


def fits(value: object, hint: Any) -> bool:
    """Whether a value that JSON can hold is of a type that a setting takes. True is no number here, "8" none either."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is list:
        return isinstance(value, list | tuple) and all(fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    if hint is float:
        return type(value) is float or fits(value, int)
    if hint is int:
        return type(value) is int and abs(value) < LARGEST
    if hint is str:
        return isinstance(value, str) and is_name(value, most=20_000)
    return value is None if hint is NoneType else type(value) is hint


def is_name(value: object, most: int = 1000) -> bool:
    """A text of a sane length that can be shown on a terminal."""
    return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()


def read_description(path: Path, folder: Path) -> dict[str, Any]:
    """The checked content of a description file, "method" made a Method. Raises FolderError at the first fault."""
    data = read_json(path, folder)
    if data.get("format") != FORMAT or type(data["format"]) is not int:
        raise FolderError(f"{path} has format {brief(data.get('format'))}; this version reads {FORMAT}.")
    if set(data) != set(KEYS):
        missing, extra = sorted(set(KEYS) - set(data)), sorted(set(data) - set(KEYS))
        raise FolderError(f"{path} is not what rankwise writes: missing {missing}, unknown {brief(extra)}.")
    for key, check in CHECKS.items():
        fault = check(data[key])
        if fault:
            raise FolderError(f"{path} is not what rankwise writes: {key} {fault}.")
    try:
        method = method_from_dict(data["method"])
    except ConfigError as error:
        raise FolderError(f"{path}: {str(error)[:500]}") from error
    return {**{k: v for k, v in data.items() if k != "format"}, "method": method}


def _fault_of_method(data: object) -> str | None:
    return None if isinstance(data, dict) else f"is {brief(data)}, not a name with settings"


def _fault_of_base_model(data: object) -> str | None:
    if isinstance(data, dict) and set(data) == {"name", "model_type"}:
        if all(value is None or (isinstance(value, str) and len(value) <= 20_000) for value in data.values()):
            return None
    return f"is {brief(data)}, not a name and a model_type"


def _fault_of_layers(data: object) -> str | None:
    if not isinstance(data, dict):
        return f"are {brief(data)}, not one entry by layer"
    ranks = 0
    for name, layer in data.items():
        if not is_name(name):
            return f"hold the name {brief(name)}, which no module has"
        if not isinstance(layer, dict) or set(layer) != {"rank", "shape"}:
            return f"say {brief(layer)} of {brief(name)}, not its rank and shape"
        rank, shape = layer["rank"], layer["shape"]
        if not fits(shape, list[int]) or len(shape) != 2 or not all(0 < d < 2**31 for d in shape):
            return f"give {brief(name)} the shape {brief(shape)}, not [d_out, d_in]"
        if not fits(rank, int) or not 0 <= rank <= MOST_RANKS:
            return f"give {brief(name)} the rank {brief(rank)}, not one from 0 to {MOST_RANKS:,}"
        ranks += rank
    return f"have {ranks:,} ranks together, and {MOST_RANKS:,} is the most" if ranks > MOST_RANKS else None


def _fault_of_names(data: object) -> str | None:
    if not isinstance(data, list) or not all(is_name(name) for name in data):
        return f"is {brief(data)}, not a list of names"
    return None if len(set(data)) == len(data) else "names something twice"


def _fault_of_run(data: object) -> str | None:
    if data is None:
        return None
    if not isinstance(data, dict) or set(data) != {"total_steps", "steps_per_epoch", "steps", "numbers"}:
        return f"is {brief(data)}, not total_steps, steps_per_epoch, steps and numbers"
    for key in ("total_steps", "steps_per_epoch"):
        if data[key] is not None and not _is_count(data[key]):
            return f"has {key}={brief(data[key])}, not a number of steps"
    if not _is_count(data["steps"]):
        return f"has steps={brief(data['steps'])}, not a number of steps"
    if not isinstance(data["numbers"], dict) or not all(re.fullmatch(r"\w{1,50}", key) for key in data["numbers"]):
        return f"has numbers={brief(data['numbers'])}, not numbers by name"
    return None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST


CHECKS = {
    "method": _fault_of_method,
    "base_model": _fault_of_base_model,
    "layers": _fault_of_layers,
    "parts": _fault_of_names,
    "trained": _fault_of_names,
    "frozen": _fault_of_names,
    "run": _fault_of_run,
}


def fault_of_numbers(numbers: Mapping[str, Any], fresh: Mapping[str, Any]) -> str | None:
    """What is wrong with a controller's saved numbers, compared with those of a new one; None if nothing is."""
    if numbers.keys() != fresh.keys():
        return f"hold {brief(sorted(numbers))}, not {sorted(fresh)}"
    for name, own in fresh.items():
        value = numbers[name]
        if isinstance(own, list):
            right = isinstance(value, list) and all(_is_count(v) for v in value)
        else:
            right = _is_count(value) if type(own) is int else type(value) is type(own)
        if not right:
            return f"give {name}={brief(value)}"
    return None
