"""The tables of a page: results, settings, environment, latency, comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankwise.report.comparison import Task
from rankwise.report.latency import Latency
from rankwise.report.run import Run

MOST_TEXT = 300  # characters of a setting


@dataclass(frozen=True)
class Table:
    """Texts by row; the first of each row is its heading. `numbers`: the rest is set in columns of figures."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True


def facts(run: Run) -> list[tuple[str, str]]:
    """What a run came to, as a few large numbers with their names."""
    results = run.results
    if results is None:
        total = run.total_steps
        return [("steps done", f"{run.last_step:,}" + (f" of {total:,}" if total else ""))]
    start, end, total = results["trainable_start"], results["trainable_end"], results["total_parameters"]
    return [
        (results["primary"], number(run.score)),
        *_baseline(results),
        ("trainable at the end", f"{end:,}"),
        ("of all parameters", f"{100 * end / total:.2f} %" if total else "–"),
        ("fewer than at the start", f"{100 * (1 - end / start):.0f} %" if start > end else "none"),
        ("training time", duration(results["seconds"])),
        ("peak memory", f"{results['peak_memory'] / 2**20:,.0f} MiB"),
    ]


def _baseline(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    baseline = results["baseline"]
    return [(f"baseline: {baseline.get('name')}", _scored(baseline))] if baseline else []


def _scored(baseline: Mapping[str, Any]) -> str:
    """With its own metric, which may be another than the run's: of a regression, mse beside pearson."""
    return f"{baseline.get('metric') or ''} {number(baseline.get('value'))}".strip()


def results_table(runs: Sequence[Run]) -> Table:
    rows = [[run.name, run.method, *_results(run)] for run in runs]
    columns = ("run", "method", "score", "compared with", "steps", "trainable, start", "end", "time", "peak memory")
    return Table("Runs", columns, rows)


def _results(run: Run) -> list[str]:
    results = run.results
    if results is None:
        return ["still training", "", f"{run.last_step:,}", "", "", "", ""]
    baseline, primary = results["baseline"], results["primary"]
    if baseline:
        compared = f"{baseline.get('name')}: {_scored(baseline)}"
    else:
        compared = f"untouched model: {number((results['before'] or {}).get(primary))}"
    return [
        f"{primary} {number(run.score)}",
        compared,
        f"{results['steps']:,}",
        f"{results['trainable_start']:,}",
        f"{results['trainable_end']:,}",
        duration(results["seconds"]),
        f"{results['peak_memory'] / 2**20:,.0f} MiB",
    ]


def scores_table(run: Run) -> Table | None:
    """Every score of one run."""
    if run.results is None:
        return None
    before, scores = run.results["before"], run.results["scores"]
    if before:
        rows = [[name, number(value), number(before.get(name))] for name, value in scores.items()]
        return Table("Scores on held-out rows", ("metric", "at the end", "untouched model"), rows)
    columns = ("metric", "at the end")
    return Table("Scores on held-out rows", columns, [[name, number(value)] for name, value in scores.items()])


def settings_tables(kept: Sequence[tuple[str, Mapping[str, Any]]], caption: str) -> list[Table]:
    """One table of what several hold, a column each; before it one of what differs."""
    flat = {name: dict(flattened(data)) for name, data in kept}
    keys = list(dict.fromkeys(key for values in flat.values() for key in values))
    rows = [[key, *(values.get(key, "") for values in flat.values())] for key in keys]
    columns = ("", *flat) if len(flat) > 1 else ("", "value")
    different = [row for row in rows if len(set(row[1:])) > 1]
    tables = [Table(f"{caption}: what differs", columns, different, numbers=False)] if different else []
    return [*tables, Table(caption, columns, rows, numbers=False)] if rows else []


def flattened(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """[("training.learning_rate", "0.001"), ...]"""
    found: list[tuple[str, str]] = []
    for name, value in data.items():
        if isinstance(value, dict) and value:
            found += flattened(value, f"{prefix}{name}.")
        else:
            text = "" if value is None else str(value)
            found.append((f"{prefix}{name}", text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} …"))
    return found


def task_table(task: Task, baseline: str | None) -> Table:
    """A comparison's rows, as they stand in its file."""
    against = f"difference to {baseline}" if baseline else "difference"
    columns = ["method", "budget", "settings", "seeds", task.metric, "interval", against, "p", "learning rate"]
    columns += ["trainable, average", "time"]
    rows = [_row(row) for row in task.rows]
    if any(row["published"] for row in task.rows):
        columns.append("published")
        rows = [[*row, _published(of["published"])] for row, of in zip(rows, task.rows, strict=True)]
    return Table(task.name, columns, rows)


def _published(numbers: Sequence[Mapping[str, Any]]) -> str:
    told = (f"{number(n['value'])} {n['metric'] or ''}".rstrip() + f" ({n['source']})" for n in numbers)
    return "; ".join(told) or "–"


def _row(row: Mapping[str, Any]) -> list[str]:
    seeds, interval = row["seeds"], row["interval"]
    return [
        row["method"],
        row["budget"] or "–",
        row["settings"] or "–",
        str(len(seeds) if isinstance(seeds, list) else seeds or "–"),
        number(row["mean"]) + (f" ± {number(row['std'])}" if row["std"] is not None else ""),
        f"{number(interval[0])} to {number(interval[1])}" if interval else "–",
        "–" if row["difference"] is None else f"{row['difference']:+.4f}",
        number(row["p_value"]),
        "–" if row["learning_rate"] is None else f"{row['learning_rate']:g}",
        "–" if row["trainable_average"] is None else f"{row['trainable_average']:,.0f}",
        "–" if row["seconds"] is None else duration(row["seconds"]),
    ]


def latency_tables(latency: Latency) -> list[Table]:
    columns = ("", "ms", "ratio to the first", "quartiles")
    return [
        Table(title, columns, [[str(r["case"]), f"{r['ms']:.1f}", f"{r['ratio']:.3f}", _span(r)] for r in rows])
        for title, rows in latency.problems.items()
    ]


def _span(row: Mapping[str, Any]) -> str:
    low, high = row["ratio_quartiles"]
    return f"{low:.3f} to {high:.3f}"


def number(value: object) -> str:
    """With four digits; a dash for none."""
    if not isinstance(value, int | float):
        return "–"
    return f"{value:.4g}" if abs(value) < 0.001 or abs(value) >= 1000 else f"{value:.4f}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
