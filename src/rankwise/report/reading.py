"""Values out of files that anyone may have made, each of its type before it is used. What is not is a FolderError."""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import IO, Any

from rankwise.errors import FolderError
from rankwise.io.untrusted import brief, check_ordinary, parse_json

MOST_LINE = 16 * 2**20  # bytes; a line is an allocation with the masks of all layers
MOST_LINES = 2_000_000
LARGEST = 2**62

Kind = tuple[str, Callable[[object], bool]]  # what it should be, in words; whether it is


def is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 20_000


def is_name(value: object) -> bool:
    """Of a layer, or of a tensor in it."""
    return isinstance(value, str) and 0 < len(value) <= 1000 and value.isprintable()


def is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < LARGEST if isinstance(value, int) else math.isfinite(value)


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST


TEXT: Kind = ("a text", is_text)
NUMBER: Kind = ("a number", is_number)
COUNT: Kind = ("a whole number from 0 on", is_count)
MAPPING: Kind = ("values by name", lambda v: isinstance(v, dict) and all(map(is_text, v)))
TEXTS: Kind = ("a list of texts", lambda v: isinstance(v, list) and all(map(is_text, v)))
NAMES: Kind = ("a list of names", lambda v: isinstance(v, list) and all(map(is_name, v)))
COUNTS: Kind = (
    "whole numbers by name",
    lambda v: isinstance(v, dict) and all(is_name(k) and is_count(n) for k, n in v.items()),
)
NUMBERS: Kind = (
    "numbers by name",
    lambda v: isinstance(v, dict) and all(n is None or is_number(n) for n in v.values()),
)
INTERVAL: Kind = ("a pair of numbers", lambda v: isinstance(v, list) and len(v) == 2 and all(map(is_number, v)))


def optional(kind: Kind) -> Kind:
    words, fits = kind
    return f"{words}, or null", lambda value: value is None or fits(value)


def list_of(kind: Kind) -> Kind:
    words, fits = kind
    return f"a list, each {words}", lambda value: isinstance(value, list) and all(map(fits, value))


def checked(data: Any, kinds: Mapping[str, Kind], where: str) -> dict[str, Any]:
    """`data`, an object whose values are of these kinds; what may be null may be missing, and is None then."""
    if not isinstance(data, dict):
        raise FolderError(f"{where}: {brief(data)} is not what rankwise writes there.")
    values = {name: data.get(name) for name in kinds}
    for name, (words, fits) in kinds.items():
        if not fits(values[name]):
            raise FolderError(f"{where}: {name} is {brief(values[name])}, not {words}.")
    return data | values


def opened(path: Path) -> IO[bytes]:
    """Raises FolderError where the disk refuses."""
    try:
        return path.open("rb")
    except OSError as error:
        raise FolderError(f"{path} cannot be read: {error}.") from error


def json_lines(path: Path, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of every whole line; a last line without its end is still being written."""
    check_ordinary(path, folder)
    with opened(path) as lines:
        for number in count(1):
            where = f"{path}, line {number}"
            line = lines.readline(MOST_LINE)
            if len(line) == MOST_LINE or number > MOST_LINES:
                raise FolderError(f"{where}: longer than anything that rankwise writes there.")
            if not line.endswith(b"\n"):
                return
            data = parse_json(line.decode("utf-8", errors="replace"), where)
            yield where, checked(data, {}, where)
