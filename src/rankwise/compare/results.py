"""comparison.json: what the runs come to, task by task, row by row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankwise.compare.cell import better_upwards
from rankwise.compare.grid import Entry, Record, chosen_rate, due, final, is_done, searches
from rankwise.compare.spec import Published, Spec
from rankwise.compare.statistics import interval, mean, paired_p, std


@dataclass(frozen=True, kw_only=True)
class Row:
    """An entry, and its finished runs by seed."""

    entry: Entry
    rate: float | None
    runs: dict[int, Record]
    searched: float | None = None
    """Score of the rate in the search; None where there was none, or nothing that could be scored."""
    versus: "Row | None" = None
    """The baseline at the same budget, or else at the size that is nearest."""

    @property
    def scores(self) -> dict[int, float]:
        """By seed; of a run whose metric is undefined there is none."""
        return {seed: float(run["score"]) for seed, run in self.runs.items() if run["score"] is not None}

    @property
    def metric(self) -> str | None:
        return next((str(run["metric"]) for run in self.runs.values()), self.entry.metric)

    @property
    def upwards(self) -> bool:
        first = next(iter(self.runs.values()), None)
        if first is not None:
            return bool(first["higher_is_better"])
        return better_upwards(self.metric or "", self.entry.higher_is_better)

    @property
    def name(self) -> str:
        """Within its task: "adalora at 0.3M"."""
        return self.entry.method + (f" at {self.entry.budget}" if self.entry.budget else "")

    def average(self, field: str) -> float | None:
        """Mean of a number over the runs."""
        found = [float(run[field]) for run in self.runs.values()]
        return mean(found) if found else None

    @property
    def seconds(self) -> float | None:
        """Of the runs that were not interrupted: the others know only their last part."""
        found = [float(run["seconds"]) for run in self.runs.values() if not run["resumed"]]
        return mean(found) if found else None

    def pairs(self) -> tuple[list[float], list[float]]:
        """Ours and the baseline's scores, for the seeds that both have."""
        theirs = {} if self.versus is None else self.versus.scores
        seeds = [seed for seed in self.scores if seed in theirs]
        return [self.scores[seed] for seed in seeds], [theirs[seed] for seed in seeds]


def rows_of(spec: Spec, entries: Sequence[Entry], records: Mapping[str, Record]) -> list[Row]:
    """A row for each entry, in the order of the entries."""
    rows = [_row(spec, entry, records) for entry in entries]
    baselines = [row for row in rows if row.entry.method == spec.baseline_label]
    return [
        replace(row, versus=_versus(row, baselines)) if row.entry.method != spec.baseline_label else row for row in rows
    ]


def _row(spec: Spec, entry: Entry, records: Mapping[str, Record]) -> Row:
    rate = chosen_rate(entry, records)
    if rate is None:
        return Row(entry=entry, rate=None, runs={})
    found = {seed: records.get(final(entry, seed, rate, Path()).name) for seed in spec.seed_list}
    runs = {seed: record for seed, record in found.items() if record and is_done(record)}
    return Row(entry=entry, rate=rate, runs=runs, searched=_searched(entry, rate, records))


def _searched(entry: Entry, rate: float, records: Mapping[str, Record]) -> float | None:
    if len(entry.rates) == 1:
        return None
    score = records[searches(entry, Path())[entry.rates.index(rate)].name]["score"]
    return None if score is None else float(score)


def _versus(row: Row, baselines: Sequence[Row]) -> Row | None:
    of_task = [other for other in baselines if other.entry.task == row.entry.task]

    def distance(other: Row) -> tuple[bool, int]:
        apart = abs(other.entry.sized.parameters - row.entry.sized.parameters)
        return other.entry.budget != row.entry.budget or row.entry.budget is None, apart

    return min(of_task, key=distance, default=None)


def results(spec: Spec, rows: Sequence[Row], records: Mapping[str, Record], answer: Sequence[str]) -> dict[str, Any]:
    """All of comparison.json."""
    entries = [row.entry for row in rows]
    failed = {cell.name for cell in due(entries, spec.seed_list, records, Path()) if cell.name in records}
    return {
        "tasks": {task: _task(spec, [row for row in rows if row.entry.task == task]) for task in spec.tasks},
        "baseline": spec.baseline_label,
        "answer": list(answer),
        "not_run": not_run(spec, rows),
        "failed": {name: records[name]["error"] for name in sorted(failed)},
        "searches": [search for row in rows for search in _search(row.entry, records)],
        "notes": spec.notes,
        "published": [vars(published) for published in spec.published],
    }


def not_run(spec: Spec, rows: Sequence[Row]) -> list[str]:
    """The runs that are missing, without their learning rate, which may not be known yet."""
    return [f"{row.entry.name}/seed{seed}" for seed in spec.seed_list for row in rows if seed not in row.runs]


def _search(entry: Entry, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    if len(entry.rates) == 1:
        return []
    found = [records.get(cell.name) for cell in searches(entry, Path())]
    scores = {f"{rate:g}": record["score"] for rate, record in zip(entry.rates, found, strict=True) if record}
    return [{"task": entry.task, "method": entry.method, "budget": entry.budget, "scores": scores}]


def _task(spec: Spec, rows: Sequence[Row]) -> dict[str, Any]:
    metric = next((row.metric for row in rows if row.metric), None)
    return {
        "metric": metric,
        "higher_is_better": next((row.upwards for row in rows if row.runs), None),
        "rows": [_numbers(row, spec.published) for row in rows],
    }


def _numbers(row: Row, published: Sequence[Published]) -> dict[str, Any]:
    scores, (ours, theirs), sized = list(row.scores.values()), row.pairs(), row.entry.sized
    end, heads = row.average("trainable_end"), row.average("head_parameters")
    return {
        "method": row.entry.method,
        "budget": row.entry.budget,
        "seeds": len(scores),
        "mean": mean(scores) if scores else None,
        "std": std(scores),
        "interval": interval(scores),
        "baseline": None if row.versus is None else row.versus.name,
        "difference": mean(ours) - mean(theirs) if ours else None,
        "p_value": paired_p(ours, theirs),
        "learning_rate": row.rate,
        "settings": sized.setting,
        "planned_parameters": sized.parameters,
        "deviation": sized.deviation,
        "note": sized.note,
        "trainable_average": row.average("trainable_average"),
        "trainable_end": end,
        "head_parameters": heads,
        "seconds": row.seconds,
        "peak_memory": row.average("peak_memory"),
        "published": [vars(p) for p in published if _beside(p, row.entry)],
    }


def _beside(published: Published, entry: Entry) -> bool:
    same = (published.task, published.method) == (entry.task, entry.method)
    return same and published.budget in (None, entry.budget)
