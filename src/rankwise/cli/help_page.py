"""What `--help` prints: one line a setting, in a reader's words instead of Python's types."""

import argparse
import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields
from textwrap import wrap
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import jsonargparse

from rankwise.adapter import Method
from rankwise.cli.explain import in_words
from rankwise.methods import METHODS

EXAMPLES = "examples:\n"
SHARED = 3  # methods that must have a setting in common for it to be told once
METAVARS = {int: "INTEGER", float: "NUMBER"}


def examples(*lines: str) -> str:
    """The end of a help page: commands to copy."""
    return EXAMPLES + "\n".join(f"  {line}" for line in lines)


class HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """In brackets: whether it is required, what it takes where the placeholder does not say it, and the default."""

    def add_arguments(self, actions: Iterable[argparse.Action]) -> None:
        """Leaves out the options that jsonargparse adds by itself: files for a section, help on a class."""
        listed = [action for action in actions if not action.dest.endswith(".help")]
        sections = {action.dest.rpartition(".")[0] for action in listed}
        super().add_arguments(action for action in listed if action.dest not in sections)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = [option for option in action.option_strings if not option.endswith("+")]
        return str(super()._format_action_invocation(shown))

    def _get_help_string(self, action: argparse.Action) -> str:
        facts = []
        if action.option_strings and action.nargs != 0 and action.default is not argparse.SUPPRESS:
            words = _words(_hint(action))
            facts += ["required"] if action.required else []
            facts += [words] if words else []
            if not action.required and (action.default is not None or "None" in (action.help or "")):
                facts.append(f"default: {_shown(action.default)}")
        return (action.help or "") + (f" ({'; '.join(facts)})" if facts else "")

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return METAVARS.get(_hint(action), action.dest.rpartition(".")[2].upper())

    def _get_default_metavar_for_positional(self, action: argparse.Action) -> str:
        return action.dest.upper()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLES) else super()._fill_text(text, width, indent)


def _hint(action: argparse.Action) -> Any:
    """The type that the option takes; of `int | None`, int."""
    hint = vars(action).get("_typehint", action.type)
    rest = [part for part in get_args(hint) if part is not NoneType]
    return rest[0] if get_origin(hint) in (Union, UnionType) and len(rest) == 1 else hint


def _words(hint: Any) -> str:
    """Nothing where the placeholder or the choices say it."""
    if hint is None or hint in METAVARS or hint in (str, bool, Method) or get_origin(hint) is Literal:
        return ""
    return in_words(hint).removesuffix(" or null")


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return '""' if default == "" else str(default)


def method_help(names: Sequence[str]) -> str:
    """The settings of these methods: those that several have in common once, then each method's own."""
    owners: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        for action in _settings(name):
            owners[action.dest, str(action.help), str(action.default), str(_hint(action))].append(name)
    groups: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for (setting, *_), of in owners.items():
        for together in [tuple(of)] if len(of) >= SHARED else [(name,) for name in of]:
            groups[together].add(setting.removeprefix("method."))
    shared = [of for of in groups if len(of) > 1]
    sections = [*sorted(shared, key=len, reverse=True), *((name,) for name in names)]
    return "\n".join(_section(of, groups[of], every=len(of) == len(names) > 1) for of in sections)


def _settings(name: str) -> list[argparse.Action]:
    parser = jsonargparse.ArgumentParser(add_help=False)
    parser.add_class_arguments(METHODS[name], "method")
    return [a for a in parser._actions if a.dest.startswith("method.") and not a.dest.endswith(".help")]


def _section(of: Sequence[str], settings: set[str], *, every: bool) -> str:
    """A heading, and the named settings of these methods."""
    cls = METHODS[of[0]]
    parser = jsonargparse.ArgumentParser(add_help=False, formatter_class=HelpFormatter, usage=argparse.SUPPRESS)
    parser.add_class_arguments(cls, "method", skip={f.name for f in fields(cls)} - settings)
    heading = "--method " + ("NAME, any" if every else ", ".join(of))
    heading = "\n".join(wrap(heading, 79, subsequent_indent="  "))
    summary = [] if len(of) > 1 else [f"  {(cls.__doc__ or '').splitlines()[0]}"]
    options = parser.format_help().partition("\n")[2].rstrip().splitlines() if settings else []
    return "\n".join([heading, *summary, *options, ""])
