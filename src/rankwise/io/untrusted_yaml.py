"""Reads YAML that anyone may have written: what JSON has too and no more, in bounded time and memory.

Apart from untrusted.py, for the library reads no YAML: only the command line does, and run folders.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from rankwise.errors import FolderError
from rankwise.io.untrusted import brief, read_text

MOST_YAML = 48 * 2**10  # bytes; the parser reads a few ten thousand values a second
MOST_YAML_VALUES = 50_000  # with every alias written out
MOST_YAML_LEVELS = 100

_TAG = "tag:yaml.org,2002:"
_KINDS = {f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}


class _Loader(yaml.SafeLoader):
    """Makes what JSON has too; a date stays the text that it is."""

    yaml_constructors = {
        tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _KINDS
    } | {f"{_TAG}timestamp": yaml.SafeLoader.yaml_constructors[f"{_TAG}str"]}

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level > MOST_YAML_LEVELS:  # the scanner's time grows with the square of the open brackets
            raise RecursionError
        super().fetch_flow_collection_start(token)


def parse_yaml(text: str) -> Any:
    """YAML without tags of Python's; raises yaml.YAMLError or ValueError, also when aliases make much out of little."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}) > MOST_YAML_VALUES:
            raise yaml.YAMLError(f"with its aliases written out it holds more than {MOST_YAML_VALUES:,} values")
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply, or holds itself") from error
    finally:
        loader.dispose()


def read_mapping(path: Path, folder: Path, most: int = MOST_YAML) -> dict[str, Any]:
    """The mapping in a YAML file of at most `most` bytes, in a folder that rankwise wrote. Raises FolderError."""
    try:
        data = parse_yaml(read_text(path, most, folder))
    except (yaml.YAMLError, ValueError) as error:
        raise FolderError(f"{path} is not YAML as rankwise writes it: {' '.join(str(error).split())}.") from error
    if not isinstance(data, dict):
        raise FolderError(f"{path} must hold a mapping of fields, not {brief(data)}.")
    return data


def _written_out(node: Any, known: dict[int, int]) -> int:
    """How many values a node holds, every alias counted as what it stands for; too many for one that holds itself."""
    if id(node) not in known:
        known[id(node)] = MOST_YAML_VALUES + 1  # while it is being counted
        known[id(node)] = 1 + sum(_written_out(child, known) for child in _children(node))
    return known[id(node)]


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else ()
