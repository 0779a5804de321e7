"""Quality against what it costs: parameters and time, with intervals."""

import math
from collections.abc import Sequence
from typing import Any

from rankwise.report.chart import Chart, Trace, axes, line, plain
from rankwise.report.comparison import Task
from rankwise.report.run import Run

MOST_LINEAR = 10  # times that the dearest may cost the cheapest on an axis that is not logarithmic
MOST_POWERS = 4

Axis = tuple[str, str, str]  # what quality is shown against, the rows' column of it, and the label
TIME: Axis = ("time", "seconds", "seconds of training")
AXES: tuple[Axis, ...] = (("parameters", "trainable_average", "trainable parameters, average over the run"), TIME)
AXES_OF_RUNS: tuple[Axis, ...] = (("parameters", "trainable_end", "trainable parameters at the end"), TIME)


def quality(task: Task, number: int, axes: Sequence[Axis] = AXES) -> list[Chart]:
    """The metric against parameters and against time, one series a method, a point a budget."""
    drawn = []
    for axis in axes:
        what, column, _ = axis
        rows = [row for row in task.rows if row["mean"] is not None and row[column] is not None]
        if rows:
            methods = dict.fromkeys(row["method"] for row in rows)
            series = [(m, sorted((r for r in rows if r["method"] == m), key=lambda r: r[column])) for m in methods]
            drawn.append(_chart(f"quality-{number}-{what}", task, axis, series))
    return drawn


def _chart(id_: str, task: Task, axis: Axis, series: Sequence[tuple[str, list[dict[str, Any]]]]) -> Chart:
    what, column, label = axis
    traces = [_points(method, rows, column, i) for i, (method, rows) in enumerate(series)]
    ordered = sorted((row for _, rows in series for row in rows), key=lambda row: row["mean"])
    low, high = (f"{row['mean']:.4g} ({row['method']})" for row in (ordered[0], ordered[-1]))
    says = f"{task.metric} of {len(series)} methods on {task.name} against {label}, from {low} to {high}."
    note = "A point is the mean over seeds, with its interval." if any(row["interval"] for row in ordered) else ""
    layout = axes(traces, label, task.metric) | {"hovermode": "closest", "showlegend": True}
    costs = [row[column] for row in ordered]
    if min(costs) > 0 and max(costs) > MOST_LINEAR * min(costs):
        layout["xaxis"] |= {"type": "log", "tickvals": _ticks(min(costs), max(costs)), "tickformat": "~s"}
    return Chart(id_, f"{task.name}: {task.metric} against {what}", traces, layout, says, note)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten, and the powers alone where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in ((1, 2, 5) if len(powers) <= MOST_POWERS else (1,))]


def _points(method: str, rows: list[dict[str, Any]], column: str, i: int) -> Trace:
    spans = [row["interval"] or [row["mean"], row["mean"]] for row in rows]
    above = [high - row["mean"] for (_, high), row in zip(spans, rows, strict=True)]
    below = [row["mean"] - low for (low, _), row in zip(spans, rows, strict=True)]
    points = [(row[column], row["mean"]) for row in rows]
    return line(method, points, i, markers=True, width=1) | {
        "error_y": {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.5},
        "text": [plain(row["budget"] or "") for row in rows],
        "hovertemplate": "%{text}<br>%{y:.4f} at %{x:,.6~g}",
    }


def of_runs(runs: Sequence[Run]) -> list[Chart]:
    """The same for runs that were trained one by one, where they are scored alike; no seeds, so no intervals."""
    finished = [(run, run.results) for run in runs if run.results is not None and run.score is not None]
    kinds = {(results["task"], results["primary"]) for _, results in finished}
    if len(finished) < 2 or len(kinds) != 1:
        return []
    name, metric = kinds.pop()
    rows = [results | {"method": run.name, "budget": None, "mean": run.score} for run, results in finished]
    return quality(Task(name, metric, [row | {"interval": None} for row in rows]), 0, AXES_OF_RUNS)
