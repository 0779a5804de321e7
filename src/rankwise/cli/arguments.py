"""Parsers of the commands, whose errors are rankwise's own."""

from pathlib import Path
from typing import Any

import jsonargparse

from rankwise.cli.explain import explained
from rankwise.cli.help_page import HelpFormatter
from rankwise.errors import ConfigError, FolderError


def make_parser(command: str, **settings: Any) -> jsonargparse.ArgumentParser:
    """A parser that raises instead of exiting, and takes no abbreviations: a typing mistake must not pass for one."""
    return jsonargparse.ArgumentParser(
        prog=f"rankwise {command}",
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
        **settings,
    )


def parse_arguments(parser: jsonargparse.ArgumentParser, arguments: list[str]) -> Any:
    """The parsed arguments. Raises ConfigError for what is unknown, missing or of the wrong type."""
    try:
        return parser.parse_args(arguments)
    except jsonargparse.ArgumentError as error:
        command = parser.prog.removeprefix("rankwise ")
        raise ConfigError(explained(str(error), command, options(parser), hints(parser))) from error


def check_new(folder: Path) -> None:
    """Raise FolderError for a folder to write that holds something, or is a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderError(f"{folder} holds something already. Give another name, or remove it.")


def hints(parser: jsonargparse.ArgumentParser) -> dict[str, Any]:
    """The type of each argument, by its name."""
    return {action.dest: vars(action).get("_typehint", action.type) for action in parser._actions}


def options(parser: jsonargparse.ArgumentParser) -> list[str]:
    """Every option of the parser, but --help and jsonargparse's `--list+`."""
    named = [option for action in parser._actions for option in action.option_strings]
    return [option for option in named if option not in ("-h", "--help") and not option.endswith("+")]
