"""rankwise compare SPEC.yaml [--model NAME] [--FIELD VALUE ...] [--workers N] [--max_hours H] [--report_only]"""

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from rankwise.cli.console import make_console
from rankwise.cli.spec_file import Asked, full_help, parse
from rankwise.compare.answer import answer, shown
from rankwise.compare.entries import entries_of
from rankwise.compare.folder import LOG, RESULT, TABLES, RunsFile, check_folder, open_folder, read_runs, runs_file
from rankwise.compare.grid import Cell, Entry, Record, to_go
from rankwise.compare.on_ray import OnRay
from rankwise.compare.processes import Executor, Processes
from rankwise.compare.results import results, rows_of
from rankwise.compare.schedule import run_all
from rankwise.compare.spec import Spec
from rankwise.compare.tables import markdown, table_of
from rankwise.errors import ConfigError
from rankwise.io.atomic import replaced_file, write_json
from rankwise.train.quiet import quiet_libraries


def run(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(full_help())
        return 0
    asked = parse(arguments)
    if asked.print_config:
        yaml.safe_dump(asked.spec.as_dict(), sys.stdout, sort_keys=False, allow_unicode=True)
        return 0
    quiet_libraries()
    console = make_console()
    folder = Path(asked.spec.output)
    if asked.report_only:
        check_folder(folder, asked.spec.as_dict())
    with console.status("reading data, and finding the size of each method"):  # seen on a terminal only
        entries = entries_of(asked.spec, asked.contenders)
    if asked.report_only:
        return report(asked.spec, entries, read_runs(folder), console)
    executor = _executor(asked, folder / LOG)
    open_folder(folder, asked.spec.as_dict())
    _say_sizes(entries, console)
    with runs_file(folder) as runs:
        deadline = None if asked.max_hours is None else time.monotonic() + 3600 * asked.max_hours
        try:
            begins = partial(_tell_begin, console, asked.spec, entries, runs)
            run_all(asked.spec, entries, runs, executor, begins, partial(_tell, console), deadline)
        except KeyboardInterrupt:
            console.print("interrupted; the same command goes on from here")
        return report(asked.spec, entries, runs.records, console)


def _executor(asked: Asked, log: Path) -> Executor:
    for name in ("workers", "cpus"):
        if vars(asked)[name] is not None and vars(asked)[name] < 1:
            raise ConfigError(f"--{name} {vars(asked)[name]} is not possible; give 1 or more.")
    if asked.executor == "ray":
        return OnRay(asked.workers, asked.cpus, asked.gpus)
    return Processes(asked.workers or 1, log)


def _tell_begin(console: Console, spec: Spec, entries: Sequence[Entry], runs: RunsFile, cell: Cell) -> None:
    """A line for a run that begins, which may take hours."""
    left = to_go(entries, spec.seed_list, runs.records)
    console.print(f"{cell.name} begins; {left} to go", style="dim", highlight=False, markup=False)


def _tell(console: Console, record: Record) -> None:
    """A line for a run that has ended."""
    if "error" in record:
        console.print(f"{record['cell']}: failed: {record['error']}", style="red", highlight=False, markup=False)
        return
    score = "diverged" if record["score"] is None else f"{record['metric']} {shown(record['score'])}"
    took = f", {record['seconds']:.0f} s" if "seconds" in record else ""
    console.print(f"{record['cell']}: {score}{took}", highlight=False, markup=False)


def _say_sizes(entries: Sequence[Entry], console: Console) -> None:
    """How each method meets its budget."""
    lines = dict.fromkeys(
        f"{entry.method}{f' at {entry.budget}' if entry.budget else ''}: {entry.sized.setting or 'one size'}, "
        f"{entry.sized.parameters:,} parameters"
        + ("" if entry.sized.deviation is None else f" ({entry.sized.deviation:+.1%})")
        + (f"; {entry.sized.note}" if entry.sized.note else "")
        for entry in entries
    )
    for line in lines:
        console.print(line, highlight=False, markup=False)


def report(spec: Spec, entries: Sequence[Entry], records: Mapping[str, Any], console: Console) -> int:
    """Write and print the results. Returns 0 if every run has been made, 1 if some are missing."""
    rows = rows_of(spec, entries, records)
    found = results(spec, rows, records, answer(spec, rows))
    folder = Path(spec.output)
    write_json(folder / RESULT, found)
    with replaced_file(folder / TABLES) as file:
        file.write(markdown(found))
    for task, numbers in found["tasks"].items():
        console.print(table_of(task, numbers))
    for sentence in found["answer"]:
        console.print(sentence, highlight=False, markup=False)
    if found["failed"]:
        console.print(f"failed, to be tried again by the same command: {', '.join(found['failed'])}", markup=False)
    if found["not_run"]:
        missing = len(found["not_run"])
        console.print(f"not run yet: {missing} of {missing + sum(len(row.runs) for row in rows)}", markup=False)
    console.print(f"comparison: {folder / TABLES}", soft_wrap=True)
    return 1 if found["not_run"] else 0
