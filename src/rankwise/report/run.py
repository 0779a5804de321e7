"""A run folder, as far as it has got: configuration, environment, decisions, metrics, results, sizes of the layers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import FolderError
from rankwise.io.run_files import CONFIG as CONFIG
from rankwise.io.run_files import ENVIRONMENT as ENVIRONMENT
from rankwise.io.run_files import HISTORY as HISTORY
from rankwise.io.run_files import METRICS as METRICS
from rankwise.io.run_files import RESULTS as RESULTS
from rankwise.io.untrusted import brief, read_json
from rankwise.io.untrusted_yaml import read_mapping
from rankwise.report.reading import (
    COUNT,
    COUNTS,
    MAPPING,
    NAMES,
    NUMBER,
    NUMBERS,
    TEXT,
    Kind,
    checked,
    json_lines,
)
from rankwise.report.reading import optional as maybe

DESCRIPTION = "rankwise.json"

EVENTS: dict[str, dict[str, Kind]] = {
    "started": {"method": TEXT, "total_steps": maybe(COUNT), "ranks": COUNTS},
    "allocated": {"budget": COUNT, "ranks": COUNTS, "orthogonality": maybe(NUMBER)},
    "closed": {"threshold": NUMBER, "ranks": COUNTS},
    "froze": {"share": NUMBER, "frozen": NAMES},
    "skipped_non_finite": {"names": NAMES},
}
RESULT: dict[str, Kind] = {
    "task": TEXT,
    "primary": TEXT,
    "scores": NUMBERS,
    "before": maybe(NUMBERS),
    "baseline": maybe(MAPPING),
    "steps": COUNT,
    "trainable_start": COUNT,
    "trainable_end": COUNT,
    "total_parameters": COUNT,
    "seconds": NUMBER,
    "peak_memory": COUNT,
}
Event = dict[str, Any]
Shapes = dict[str, tuple[int, int]]  # layer -> (d_out, d_in)


@dataclass(frozen=True)
class Run:
    """What a run folder holds. `results` is None of a run that has not finished."""

    name: str
    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    results: dict[str, Any] | None
    events: list[Event]
    metrics: list[dict[str, Any]]
    shapes: Shapes | None

    @property
    def method(self) -> str:
        method = self.config.get("method")
        name = method.get("name") if isinstance(method, dict) else method
        return name if isinstance(name, str) else "unknown method"

    @property
    def last_step(self) -> int:
        """Steps done, as far as the files tell."""
        if self.results is not None:
            return int(self.results["steps"])
        return max((line["step"] for line in [*self.events, *self.metrics]), default=0)

    @property
    def total_steps(self) -> int | None:
        """Steps that it is to do, as the history says it began."""
        return next((e["total_steps"] for e in self.events if e["event"] == "started"), None)

    @property
    def score(self) -> float | None:
        """What it reached by the metric that decides."""
        value = None if self.results is None else self.results["scores"].get(self.results["primary"])
        return None if value is None else float(value)


def is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read_run(folder: Path, name: str | None = None) -> Run:
    """Raises FolderError, naming the file, for what is no run folder or is broken. One that still trains is none."""
    if not is_run(folder):
        raise FolderError(f"{folder} is no run: it has no {CONFIG}.")
    return Run(
        name=name or folder.resolve().name,
        folder=folder,
        config=read_mapping(folder / CONFIG, folder),
        environment=_json(folder, ENVIRONMENT) or {},
        results=_results(folder),
        events=list(_events(folder)),
        metrics=list(_metrics(folder)),
        shapes=_shapes(folder),
    )


def _json(folder: Path, name: str) -> dict[str, Any] | None:
    return read_json(folder / name, folder) if (folder / name).exists() else None


def _results(folder: Path) -> dict[str, Any] | None:
    results = _json(folder, RESULTS)
    if results is None:
        return None
    results = checked(results, RESULT, str(folder / RESULTS))
    if results["primary"] not in results["scores"]:
        raise FolderError(f"{folder / RESULTS}: primary is {brief(results['primary'])}, which is none of the scores.")
    return results


def _events(folder: Path) -> Iterator[Event]:
    """The decisions, without their masks: those are in the file, and make most of it."""
    if not (folder / HISTORY).exists():
        return
    for where, line in json_lines(folder / HISTORY, folder):
        kind = line.get("event")
        if not isinstance(kind, str) or kind not in EVENTS:
            raise FolderError(f"{where}: {brief(kind)} is no event; known are {list(EVENTS)}.")
        event = checked(line, {"step": COUNT, **EVENTS[kind]}, where)
        yield {name: value for name, value in event.items() if name != "masks"}


def _metrics(folder: Path) -> Iterator[dict[str, Any]]:
    if not (folder / METRICS).exists():
        return
    for where, line in json_lines(folder / METRICS, folder):
        yield checked(line, {"step": COUNT, "seconds": NUMBER}, where)


def _shapes(folder: Path) -> Shapes | None:
    """Of the final adapter, else of the last checkpoint; None while there is neither."""
    checkpoints = sorted((folder / "checkpoints").glob(f"checkpoint-*/{DESCRIPTION}"), key=_step_of)
    path = next((p for p in (folder / "adapter" / DESCRIPTION, *reversed(checkpoints)) if p.is_file()), None)
    if path is None:
        return None
    layers = checked(read_json(path, folder), {"layers": MAPPING}, str(path))["layers"]
    shapes = {name: checked(layer, {"shape": PAIR}, f"{path}, {brief(name)}") for name, layer in layers.items()}
    return {name: (layer["shape"][0], layer["shape"][1]) for name, layer in shapes.items()}


PAIR: Kind = (
    "[d_out, d_in]",
    lambda v: isinstance(v, list) and len(v) == 2 and all(COUNT[1](n) for n in v),
)


def _step_of(path: Path) -> int:
    digits = path.parent.name.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() else -1
