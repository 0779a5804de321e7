"""Reads files that anyone may have made: ordinary files of a bounded size, parsed strictly, nothing of them run.

Everything that is refused is a FolderError that names the file. The bounds keep a hostile file below 2 seconds and
200 MB; an adapter of 2,000 layers stays within them.
"""

import json
import math
import reprlib
from pathlib import Path
from typing import Any

from rankwise.errors import FolderError

MOST_JSON = 4 * 2**20  # bytes; a parsed list takes twenty times its text
MOST_LISTS = 65_536  # and objects, in one JSON file: two for each layer

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def brief(value: object) -> str:
    """A value for a message: at most a line of it, whatever it holds."""
    return _SHORT.repr(value)


def check_ordinary(path: Path, folder: Path | None = None) -> None:
    """Raise FolderError unless `path` is an ordinary file and, if `folder` is given, one that lies in it.

    A link may lead from the snapshots of the hub's cache into its blobs, and nowhere else out of the folder.
    """
    try:
        exists, ordinary, real = path.exists(), path.is_file(), path.resolve()
        if folder is not None and path.is_symlink():
            root = folder.resolve()
            cache = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
            if not (real.is_relative_to(root) or real.is_relative_to(cache)):
                raise FolderError(f"{path} is a link that leads out of its folder. Put the file itself there.")
    except (OSError, RuntimeError) as error:  # links in a circle, no permission
        if isinstance(error, FolderError):
            raise
        raise FolderError(f"{path} cannot be read: {error}.") from error
    if not exists:
        raise FolderError(f"{path} is not there.")
    if not ordinary:
        raise FolderError(f"{path} is no ordinary file.")


def read_text(path: Path, most: int, folder: Path | None = None) -> str:
    """The text of an ordinary UTF-8 file of at most `most` bytes."""
    check_ordinary(path, folder)
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise FolderError(f"{path} is larger than {most:,} bytes; nothing that rankwise writes there is.")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FolderError(f"{path} is not UTF-8 (byte {error.start + 1}).") from error
    except OSError as error:
        if isinstance(error, FolderError):
            raise
        raise FolderError(f"{path} cannot be read: {error}.") from error


def read_json(path: Path, folder: Path | None = None, most: int = MOST_JSON) -> dict[str, Any]:
    """The one object that a JSON file holds."""
    text = read_text(path, most, folder)
    if text.count("[") + text.count("{") > MOST_LISTS:
        raise FolderError(f"{path} holds more lists and objects than anything that rankwise writes there.")
    data = parse_json(text, str(path))
    if not isinstance(data, dict):
        raise FolderError(f"{path} must hold one JSON object, not {brief(data)}.")
    return data


def parse_json(text: str, where: str) -> Any:
    """JSON by the letter: no NaN, no infinities, no key twice."""
    try:
        return json.loads(text, object_pairs_hook=_each_once, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{where} is not JSON as rankwise writes it: {error}.") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {brief(next(n for n in names if names.count(n) > 1))} stands there twice")
    return data


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{brief(text)} is no finite number")
    return number
