"""A comparison's folder, as far as it has got: its spec, every finished run, and what was made of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import FolderError
from rankwise.io.untrusted import MOST_JSON, brief, read_json
from rankwise.io.untrusted_yaml import read_mapping
from rankwise.report.reading import (
    COUNT,
    INTERVAL,
    MAPPING,
    NUMBER,
    TEXT,
    TEXTS,
    Kind,
    checked,
    json_lines,
    list_of,
    optional,
)
from rankwise.report.run import Run, is_run, read_run

SPEC, ENVIRONMENT, RUNS, COMPARISON = "spec.yaml", "environment.json", "runs.jsonl", "comparison.json"
MOST_DRAWN = 6  # runs of a comparison whose curves are drawn

CELL: dict[str, Kind] = {
    "cell": TEXT,
    "purpose": TEXT,
    "task": TEXT,
    "method": TEXT,
    "budget": optional(TEXT),
    "seed": optional(COUNT),
    "learning_rate": optional(NUMBER),
    "folder": optional(TEXT),
    "error": optional(TEXT),
}
ROW: dict[str, Kind] = {
    "method": TEXT,
    "budget": optional(TEXT),
    "seeds": optional(("a number or a list", lambda v: COUNT[1](v) or isinstance(v, list))),
    "mean": optional(NUMBER),
    "std": optional(NUMBER),
    "interval": optional(INTERVAL),
    "difference": optional(NUMBER),
    "p_value": optional(NUMBER),
    "learning_rate": optional(NUMBER),
    "trainable_average": optional(NUMBER),
    "trainable_end": optional(NUMBER),
    "seconds": optional(NUMBER),
    "peak_memory": optional(NUMBER),
    "settings": optional(TEXT),
    "published": optional(list_of(("an object", lambda v: isinstance(v, dict)))),
}
PUBLISHED: dict[str, Kind] = {"value": NUMBER, "source": TEXT, "metric": optional(TEXT)}
TASK: dict[str, Kind] = {"metric": optional(TEXT), "rows": list_of(("an object", lambda v: isinstance(v, dict)))}
WHOLE: dict[str, Kind] = {
    "tasks": MAPPING,
    "baseline": optional(TEXT),
    "answer": optional(TEXTS),
    "not_run": optional(TEXTS),
}


@dataclass(frozen=True)
class Task:
    """One task's rows: a method at a budget, over its seeds."""

    name: str
    metric: str
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """`tasks` and `answer` are empty while the comparison runs; `drawn` are the runs whose curves are shown."""

    name: str
    folder: Path
    spec: dict[str, Any]
    environment: dict[str, Any]
    cells: list[dict[str, Any]]  # the runs that have ended well
    failed: list[str]
    tasks: list[Task]
    baseline: str | None
    answer: list[str]
    not_run: list[str]
    drawn: list[Run]

    @property
    def finished(self) -> bool:
        return bool(self.tasks)


def is_comparison(folder: Path) -> bool:
    return (folder / RUNS).is_file() or (folder / COMPARISON).is_file()


def read_comparison(folder: Path) -> Comparison:
    """Raises FolderError, naming the file, for one that is broken. One that still runs is none."""
    ended = {cell["cell"]: cell for cell in _cells(folder)}  # a run that was tried again has its last line last
    cells = [cell for cell in ended.values() if cell["error"] is None]
    whole = _whole(folder)
    return Comparison(
        name=folder.resolve().name,
        folder=folder,
        spec=read_mapping(folder / SPEC, folder, MOST_JSON) if (folder / SPEC).exists() else {},
        environment=read_json(folder / ENVIRONMENT, folder) if (folder / ENVIRONMENT).exists() else {},
        cells=cells,
        failed=[f"{name}: {cell['error']}" for name, cell in ended.items() if cell["error"] is not None],
        tasks=[_task(name, task, folder / COMPARISON) for name, task in whole["tasks"].items()],
        baseline=whole["baseline"],
        answer=whole["answer"] or [],
        not_run=whole["not_run"] or [],
        drawn=list(_drawn(folder, cells)),
    )


def _cells(folder: Path) -> Iterator[dict[str, Any]]:
    if (folder / RUNS).exists():
        for where, line in json_lines(folder / RUNS, folder):
            yield checked(line, CELL, where)


def _whole(folder: Path) -> dict[str, Any]:
    path = folder / COMPARISON
    return checked(read_json(path, folder) if path.exists() else {"tasks": {}}, WHOLE, str(path))


def _task(name: str, data: Any, path: Path) -> Task:
    task = checked(data, TASK, f"{path}, task {brief(name)}")
    where = f"{path}, a row of task {brief(name)}"
    rows = [checked(row, ROW, where) for row in task["rows"]]
    for row in rows:
        row["published"] = [checked(number, PUBLISHED, where) for number in row["published"] or []]
    return Task(name, task["metric"] or "score", rows)


def _drawn(folder: Path, cells: list[dict[str, Any]]) -> Iterator[Run]:
    """The first final run of each task, method and budget, as many as can be told apart."""
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for cell in cells:
        if cell["purpose"] == "final" and cell["folder"]:
            first.setdefault((cell["task"], cell["method"], cell["budget"]), cell)
    for cell in list(first.values())[:MOST_DRAWN]:
        path = folder / cell["folder"]
        if not path.resolve().is_relative_to(folder.resolve()):
            raise FolderError(f"{folder / RUNS}: the folder {brief(cell['folder'])} leads out of the comparison.")
        if is_run(path):
            task = f"{cell['task']}: " if len({key[0] for key in first}) > 1 else ""
            yield read_run(path, f"{task}{cell['method']} {cell['budget'] or ''}".rstrip())
