"""The map of live ranks, layer by module, with one frame for each time that something changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rankwise.report.chart import Chart, Trace, grid_layout, grid_of_cells, plain
from rankwise.report.course import Moment, changes_ranks, course
from rankwise.report.grid import Grid, grid
from rankwise.report.run import Run
from rankwise.report.thin import spread

MOST_LETTERS = 5000  # cells that can still be read as numbers
PROJECTIONS = 2  # of a layer that may freeze: into its ranks, and out of them


@dataclass(frozen=True)
class RankMap:
    """The end of the run as a chart, and all frames for the slider."""

    chart: Chart
    data: dict[str, Any]


def rank_map(run: Run) -> RankMap | None:
    """None for a run without ranks. Where ranks never change and projections freeze, the colour is theirs."""
    moments = course(run)
    if not moments:
        return None
    where = grid(moments[0].ranks)
    of_ranks = changes_ranks(moments) or not moments[-1].frozen
    frames = [_frame(m, where, of_ranks=of_ranks) for m in spread(moments)]
    most = max(moments[0].ranks.values()) if of_ranks else PROJECTIONS
    unit = "live ranks" if of_ranks else "projections that train"
    chart = Chart(
        id="rank-map",
        title="Where the ranks are" if of_ranks else "What still trains",
        traces=[_heatmap(where, frames[-1], most, unit)],
        layout=grid_layout(len(where.rows)),
        says=_in_words(run, moments),
        note="The number in a cell is the layer's live ranks."
        + (" Letters behind it are projections that are frozen." if moments[-1].frozen else ""),
    )
    end = max(run.last_step, moments[-1].step)
    return RankMap(
        chart,
        {
            "run": run.name,
            "end": end,
            "total": max(run.total_steps or 0, end),
            "chart": chart.as_json(),
            "frames": frames,
        },
    )


def _frame(moment: Moment, where: Grid, *, of_ranks: bool) -> dict[str, Any]:
    """z: what the colour says; text: what the cell says."""
    z: list[list[int | None]] = [[None] * len(where.columns) for _ in where.rows]
    text = [[""] * len(where.columns) for _ in where.rows]
    letters = dict.fromkeys(moment.ranks, "")
    for projection in sorted(moment.frozen):
        layer, _, letter = projection.rpartition(".")
        if layer in letters:
            letters[layer] += letter
    for name, rank in moment.ranks.items():
        row, column = where.cells[name]
        z[row][column] = rank if of_ranks else PROJECTIONS - len(letters[name])
        text[row][column] = plain(f"{rank} {letters[name]}".strip())
    label = f"{moment.live:,} ranks live" + (f", {len(moment.frozen):,} projections frozen" if moment.frozen else "")
    return {"step": moment.step, "label": label, "z": z, "text": text}


def _heatmap(where: Grid, frame: dict[str, Any], most: int, unit: str) -> Trace:
    readable = len(where.rows) * len(where.columns) <= MOST_LETTERS
    cells = grid_of_cells(
        where.columns,
        where.rows,
        unit,
        z=frame["z"],
        text=frame["text"],
        texttemplate="%{text}" if readable else "",
        zmin=0,
        zmax=most,
        hovertemplate="%{y} %{x}: %{text}<extra></extra>",
    )
    cells["colorbar"] |= {"tick0": 0, "dtick": max(1, most // 6)}  # there are no half ranks
    return cells


def _in_words(run: Run, moments: Sequence[Moment]) -> str:
    first, last = moments[0], moments[-1]
    text = f"{run.name}: {len(first.ranks)} layers begin with {first.live} ranks"
    if changes_ranks(moments):
        ends = sorted(last.ranks, key=lambda name: last.ranks[name])
        text += f" and end with {last.live}; {ends[-1]} keeps most ({last.ranks[ends[-1]]}), {ends[0]} fewest"
        text += f" ({last.ranks[ends[0]]})"
    else:
        text += ", and keep them"
    return text + (f"; {len(last.frozen)} projections are frozen at the end." if last.frozen else ".")
