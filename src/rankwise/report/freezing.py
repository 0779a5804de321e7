"""When projections stopped training: the share over the steps, and the step of each."""

from collections.abc import Sequence

from rankwise.report.chart import Chart, axes, grid_layout, grid_of_cells, step_line
from rankwise.report.grid import Grid, grid
from rankwise.report.run import Run
from rankwise.report.thin import Point


def frozen_share(runs: Sequence[Run]) -> Chart | None:
    curves: list[tuple[Run, list[Point]]] = []
    for run in runs:
        shares = [(e["step"] + 1, 100 * e["share"]) for e in run.events if e["event"] == "froze"]
        if shares:
            curves.append((run, [(0, 0.0), *shares]))
    if not curves:
        return None
    traces = [step_line(run.name, points, run.last_step, i) for i, (run, points) in enumerate(curves)]
    words = "; ".join(f"{run.name} reaches {points[-1][1]:.0f} % at step {points[-1][0]}" for run, points in curves)
    layout = axes(traces, "step", "% of projections", range=[0, 102])
    return Chart("frozen-share", "Frozen projections", traces, layout, f"Share that is frozen: {words}.")


def freezing_maps(run: Run, number: int) -> list[Chart]:
    """One map for each letter, blocks by modules: the colour is the step at which the projection froze."""
    steps: dict[str, dict[str, int]] = {}  # letter -> layer -> step
    for event in run.events:
        if event["event"] == "froze":
            for name in event["frozen"]:
                layer, _, letter = name.rpartition(".")
                steps.setdefault(letter, {})[layer] = event["step"] + 1
    layers = next((list(e["ranks"]) for e in run.events if e["event"] == "started"), [])
    span = [step for at in steps.values() for step in at.values()]
    found = sorted(steps.items())
    return [_map(run, letter, grid(layers), at, span, f"freezing-{number}-{i}") for i, (letter, at) in enumerate(found)]


def _map(run: Run, letter: str, where: Grid, steps: dict[str, int], span: Sequence[int], id_: str) -> Chart:
    z: list[list[int | None]] = [[None] * len(where.columns) for _ in where.rows]
    for layer in steps.keys() & where.cells.keys():
        row, column = where.cells[layer]
        z[row][column] = steps[layer]
    hover = "%{y} %{x}: frozen from step %{z}<extra></extra>"
    shown = {"z": z, "zmin": min(span), "zmax": max(span), "texttemplate": "%{z}"}
    trace = grid_of_cells(where.columns, where.rows, "step", hovertemplate=hover, **shown)
    first, last = min(steps, key=lambda n: steps[n]), max(steps, key=lambda n: steps[n])
    says = f"{run.name}: of {letter}, {first} froze first, at step {steps[first]}, and {last} last, at {steps[last]}."
    note = "The number is the step from which it was frozen. Blank: it trained to the end."
    return Chart(id_, f"When {letter} froze, {run.name}", [trace], grid_layout(len(where.rows)), says, note)
