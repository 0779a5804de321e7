"""The cells of a comparison, and which of them are due: a function of what has been run.

    for each seed, task, budget and method:  its search, then one run at the rate that won

Seeds come outermost, so that a comparison which is interrupted has seen every method about equally often.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rankwise.compare.sizing import Sized
from rankwise.compare.spec import SearchConfig
from rankwise.train.config import RunConfig
from rankwise.train.data_config import DataConfig

Record = Mapping[str, Any]  # a line of runs.jsonl
RUNS, SEARCH = "runs", "search"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method at a budget, on a task."""

    task: str
    method: str
    sized: Sized
    config: RunConfig
    """Of its runs, but for learning rate, seed and output."""
    rates: tuple[float, ...]
    search: SearchConfig
    search_data: DataConfig
    """The part of the training rows that the learning rate is searched on."""
    metric: str | None
    higher_is_better: bool | None

    @property
    def budget(self) -> str | None:
        return self.sized.budget

    @property
    def name(self) -> str:
        return "/".join(part for part in (self.task, self.method, self.budget) if part is not None)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run, to be made."""

    name: str
    purpose: Literal["search", "final"]
    entry: Entry
    seed: int
    config: RunConfig

    @property
    def identity(self) -> dict[str, Any]:
        """What its record says before it was run."""
        return {
            "cell": self.name,
            "purpose": self.purpose,
            "task": self.entry.task,
            "method": self.entry.method,
            "budget": self.entry.budget,
            "seed": self.seed,
            "learning_rate": self.config.training.learning_rate,
        }


def due(entries: Sequence[Entry], seeds: Sequence[int], records: Mapping[str, Record], output: Path) -> Iterator[Cell]:
    """The cells that can be run now and have not been, the most wanted first; a search's cells once for each seed."""
    for seed in seeds:
        for entry in entries:
            rate = chosen_rate(entry, records)
            cells = searches(entry, output) if rate is None else [final(entry, seed, rate, output)]
            yield from (cell for cell in cells if not is_done(records.get(cell.name)))


def to_go(entries: Sequence[Entry], seeds: Sequence[int], records: Mapping[str, Record]) -> int:
    """How many runs are missing, those of searches among them."""
    found = 0
    for entry in entries:
        rate = chosen_rate(entry, records)
        wanted = searches(entry, Path()) if rate is None else [final(entry, seed, rate, Path()) for seed in seeds]
        found += sum(not is_done(records.get(cell.name)) for cell in wanted)
        found += len(seeds) if rate is None else 0
    return found


def is_done(record: Record | None) -> bool:
    """A cell that failed is not."""
    return record is not None and "error" not in record


def searches(entry: Entry, output: Path) -> list[Cell]:
    """A run for each learning rate."""
    return [
        _cell(entry, f"{SEARCH}/{entry.name}/lr{rate:g}", "search", entry.search.seed, rate, output, entry.search_data)
        for rate in entry.rates
    ]


def final(entry: Entry, seed: int, rate: float, output: Path) -> Cell:
    return _cell(entry, f"{entry.name}/lr{rate:g}/seed{seed}", "final", seed, rate, output, entry.config.data)


def _cell(
    entry: Entry,
    name: str,
    purpose: Literal["search", "final"],
    seed: int,
    rate: float,
    output: Path,
    data: DataConfig,
) -> Cell:
    training = replace(entry.config.training, learning_rate=rate, seed=seed)
    config = replace(entry.config, data=data, training=training, output=str(output / RUNS / name))
    return Cell(name=name, purpose=purpose, entry=entry, seed=seed, config=config)


def chosen_rate(entry: Entry, records: Mapping[str, Record]) -> float | None:
    """The rate whose search run scored best, the lower one of equals; None until all of them have run."""
    if len(entry.rates) == 1:
        return entry.rates[0]
    found = [records.get(cell.name) for cell in searches(entry, Path())]
    if not all(is_done(record) for record in found):
        return None
    return min((worth(record), rate) for record, rate in zip(found, entry.rates, strict=True) if record)[1]


def worth(record: Record) -> float:
    """What sorts before everything worse: a run that diverged, or whose score is undefined, comes last."""
    score = record["score"]
    if score is None:
        return float("inf")
    return -float(score) if record["higher_is_better"] else float(score)
