"""Runs what is due, records what has ended, and stops when nothing is due any more or the time is up."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rankwise.compare.cell import failure
from rankwise.compare.folder import RunsFile
from rankwise.compare.grid import Cell, Entry, Record, due
from rankwise.compare.processes import Executor
from rankwise.compare.search_rows import write_search_rows
from rankwise.compare.spec import Spec
from rankwise.errors import RankwiseError


def run_all(
    spec: Spec,
    entries: Sequence[Entry],
    runs: RunsFile,
    executor: Executor,
    begins: Callable[[Cell], None],
    told: Callable[[Record], None],
    deadline: float | None = None,
) -> None:
    """Run all cells that are not in `runs`. What fails is recorded, and not tried again before the next call.

    `deadline` is a time of time.monotonic(); what is running then is stopped, and resumed by the next call.
    """
    begun: set[str] = set()
    running = 0

    def waiting() -> Iterator[Cell]:
        return (c for c in due(entries, spec.seed_list, runs.records, Path(spec.output)) if c.name not in begun)

    def note(record: Record) -> None:
        runs.append(record)
        told(runs.records[record["cell"]])

    try:
        while deadline is None or time.monotonic() < deadline:
            while executor.has_room() and (cell := next(waiting(), None)) is not None:
                begun.add(cell.name)
                refused = _prepare(cell)
                if refused is None:
                    begins(cell)
                    executor.begin(cell)
                    running += 1
                else:
                    note(cell.identity | failure(refused))
            if not running:
                return
            for _, record in executor.ended(None if deadline is None else max(0.0, deadline - time.monotonic())):
                running -= 1
                note(record)
    finally:
        executor.stop()


def _prepare(cell: Cell) -> str | None:
    """Write what the cell reads. The reason if that cannot be."""
    if cell.purpose == "search":
        try:
            write_search_rows(cell.entry.config.data, cell.entry.search, Path(cell.config.data.train).parent)
        except RankwiseError as error:
            return str(error)
    return None
