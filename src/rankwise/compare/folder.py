"""The folder of a comparison: spec.yaml, environment.json, runs.jsonl, runs/, search/, comparison.json, comparison.md.

runs.jsonl is the memory of it: a line for each run that has ended, on the disk before the next one begins. A line that
was cut short by a crash is taken away; of a cell with several lines, the last one counts.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from rankwise.errors import ConfigError, FolderError
from rankwise.io.atomic import replaced_file, write_json
from rankwise.io.untrusted import parse_json
from rankwise.io.untrusted_yaml import MOST_YAML, read_mapping
from rankwise.train.record import ENVIRONMENT, environment, finite

SPEC, RUNS_FILE, RESULT, TABLES, LOG = "spec.yaml", "runs.jsonl", "comparison.json", "comparison.md", "log.txt"
NEEDED = ("cell", "purpose", "task", "method", "budget", "seed", "learning_rate", "score")


def open_folder(folder: Path, spec: Mapping[str, Any]) -> None:
    """Make the folder, or go on in one whose spec is this, or this less tasks, methods, budgets or seeds.

    Raises ConfigError, with the field, for a spec under which finished runs would have been others.
    """
    path = folder / SPEC
    if path.exists():
        saved = read_mapping(path, path.parent)
        check_same(path, saved, spec)
        spec = {**spec, **{name: {**saved[name], **spec[name]} for name in ("tasks", "methods")}}
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderError(f"output={str(folder)!r} holds something that is no comparison. Give another name.")
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True)
    if len(text.encode()) > MOST_YAML:
        raise ConfigError(f"the spec takes more than {MOST_YAML:,} bytes. Split the comparison.")
    write_json(folder / ENVIRONMENT, environment())
    with replaced_file(path) as file:
        file.write(text)


def check_folder(folder: Path, spec: Mapping[str, Any]) -> None:
    """Raise FolderError if the folder holds no comparison, ConfigError if it holds another."""
    if not (folder / SPEC).is_file():
        raise FolderError(f"output={str(folder)!r} holds no comparison yet; there is nothing to report.")
    check_same(folder / SPEC, read_mapping(folder / SPEC, folder), spec)


def check_same(path: Path, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise ConfigError at the first field in which `given` is no mere addition to `saved`."""
    for name in ("tasks", "methods"):
        for label in saved.get(name, {}):
            if label in given[name] and saved[name][label] != given[name][label]:
                _refuse(path, f"{name}.{label}", saved[name][label], given[name][label])
    for name in ("base", "search", "counted", "alpha_over_rank"):
        one, other = _flat({name: saved.get(name)}), _flat({name: given[name]})
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                _refuse(path, key, one.get(key), other.get(key))


def _refuse(path: Path, name: str, was: Any, now: Any) -> None:
    raise ConfigError(
        f"{path.parent} was begun with {name}={was!r}, and is to go on with {now!r}: runs that are finished would not "
        "be comparable with new ones. Tasks, methods, budgets and seeds may be added; for anything else give another "
        "output."
    )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


class RunsFile:
    """runs.jsonl, opened by the one process that writes it."""

    def __init__(self, file: IO[bytes], records: dict[str, dict[str, Any]]) -> None:
        self._file, self.records = file, records

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a line; it is on the disk when this returns."""
        kept: dict[str, Any] = finite(record)
        self._file.write((json.dumps(kept) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records[kept["cell"]] = kept


@contextmanager
def runs_file(folder: Path) -> Iterator[RunsFile]:
    """The file, locked. Raises FolderError while another comparison has it, or if it is not one's own."""
    path = folder / RUNS_FILE
    with path.open("ab") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderError(f"another comparison is running in {folder}. Wait for it, or stop it.") from None
        records, whole = read_runs(folder), _whole_length(path)
        file.truncate(whole)
        yield RunsFile(file, records)


def read_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The last line of each cell, by name. Raises FolderError for a line that is none of rankwise's."""
    path = folder / RUNS_FILE
    if not path.exists():
        return {}
    records: dict[str, dict[str, Any]] = {}
    lines = path.read_bytes()[: _whole_length(path)].decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        data = parse_json(line, f"{path}, line {number}")
        if not isinstance(data, dict) or any(name not in data for name in NEEDED):
            raise FolderError(f"{path}, line {number}: no run of a comparison.")
        records[data["cell"]] = data
    return records


def _whole_length(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    return path.read_bytes().rfind(b"\n") + 1
