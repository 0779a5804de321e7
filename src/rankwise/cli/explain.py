"""jsonargparse's messages in one line: what came, what was possible, and what to do next."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rankwise.allocation.schedule import Epochs
from rankwise.errors import nearest
from rankwise.methods import METHODS

UNRECOGNIZED, REQUIRED = "unrecognized arguments: ", "the following arguments are required: "
NO_VALUE = ": expected one argument"
WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    Any: "anything",
}


def explained(
    message: str, command: str, options: Iterable[str], hints: Mapping[str, Any], config: type | None = None
) -> str:
    """`options` are all option strings of the command and `hints` the types of its own; `config` is the dataclass that
    its config file describes."""
    if UNRECOGNIZED in message:
        return unknown_option(message.partition(UNRECOGNIZED)[2].split()[0], command, list(options))
    if REQUIRED in message:
        names = message.partition(REQUIRED)[2].split("\n")[0]
        verb, them = ("are", "them") if "," in names else ("is", "it")
        if config is None:
            return f"{names} {verb} missing. `rankwise {command} --help` shows what it takes."
        given = ", ".join(f"--{name}" for name in names.split(", "))
        return f"{names} {verb} missing. Write {them} into the config file, or give {given}."
    if NO_VALUE in message:
        return f"{message.partition(NO_VALUE)[0].rpartition('argument ')[2]} needs a value."
    told = wrong_setting(message) or wrong_value(message, config, hints)
    return told or " ".join(message.split())


def unknown_option(argument: str, command: str, options: list[str]) -> str:
    """The nearest option by its last part, which is what people remember; else what its group has."""
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}. `rankwise {command} --help` shows what it takes."
    option = argument.partition("=")[0]
    group, _, leaf = option.lstrip("-").rpartition(".")
    leaves = {o.rpartition(".")[2].lstrip("-"): o for o in options if o.startswith(f"--{group}.") or not group}
    inside = [o.removeprefix(f"--{group}.") for o in options if group and o.startswith(f"--{group}.")]
    suggestion = next((leaves[name] for name in leaves if nearest(leaf, leaves) == f" Did you mean {name!r}?"), None)
    told = f"unknown option {option}." + (f" Did you mean '{suggestion}'?" if suggestion else "")
    if inside and not suggestion:
        told += f" {group} has {inside}."
    return f"{told} `rankwise {command} --help` lists all."


def wrong_setting(message: str) -> str | None:
    """A setting that the method has not."""
    setting = re.search(r"Option '([^']+)' is not accepted", message)
    cls = method_class(message)
    if setting is None or cls is None:
        return None
    known = [f.name for f in fields(cls)]
    return f"unknown key 'method.{setting[1]}'; known here are {known}.{nearest(setting[1], known)}"


def wrong_value(message: str, config: type | None, hints: Mapping[str, Any]) -> str | None:
    """A value of the wrong type."""
    path = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    value = re.search(r"(?:Given value|Got value): (.*)", message)
    of_file = None if config is None else hint_of(path, config, method_class(message))
    hint = hints.get(path) if of_file is None else of_file
    if value is None or hint is None:
        return None
    words = in_words(hint) if of_file is not None else in_words(hint).removesuffix(" or null")  # an option has no null
    return f"{path}={value[1]} is not possible; {path} takes {words}." + nearest(value[1], choices(hint))


def method_class(message: str) -> Any:
    names = re.findall(r"class_path '[^']*?(\w+)'", message)
    return next((cls for cls in METHODS.values() if names and cls.__name__ == names[-1]), None)


def hint_of(path: str, config: type, method: Any) -> Any:
    """The type of the field at "training.steps" or, in the given class, at "method.rank"; None if there is none."""
    here: Any = config
    for part in path.split("."):
        hints = get_type_hints(here) if is_dataclass(here) else {}
        here = method if part == "method" and here is config else hints.get(part)
    return here


def in_words(hint: Any) -> str:
    """A type as a reader of a config file would call it."""
    if get_origin(hint) is Literal:
        return f"one of {list(get_args(hint))}"
    if Epochs in get_args(hint):
        return "steps (100), a fraction of the run (0.1) or epochs ('1 epoch')" + " or null" * (
            NoneType in get_args(hint)
        )
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(in_words(part) for part in get_args(hint))
    if get_origin(hint) is list:
        item = in_words(get_args(hint)[0])
        return (
            f"a list of {item.removeprefix('a ')}s" if item in ("a number", "a whole number") else f"a list of {item}"
        )
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
        key, value = get_args(hint)
        return f"a mapping from {in_words(key)} to {in_words(value)}"
    if is_dataclass(hint):
        return f"a mapping with the fields {[f.name for f in fields(hint)]}"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def choices(hint: Any) -> list[str]:
    """The words that the type lists."""
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    return [word for part in get_args(hint) for word in choices(part)]
