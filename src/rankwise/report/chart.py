"""What a chart is: a Plotly figure as plain data with the words around it, and the look that all of them share."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rankwise.report.thin import Point, thinned

# Okabe and Ito's colours, which colour-blind eyes tell apart; those that both a white and a dark page carry come first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
SCALE = "Cividis"
HEIGHT = 360  # pixels

Trace = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """Traces and layout as Plotly takes them, a heading, a line below, and in words what there is to see."""

    id: str
    title: str
    traces: Sequence[Trace]
    layout: Mapping[str, Any]
    says: str
    note: str = ""

    @property
    def height(self) -> int:
        return int(self.layout.get("height", HEIGHT))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def plain(text: str) -> str:
    """A text that Plotly shows as it is: its labels know some HTML."""
    return html.escape(text, quote=False)


def look(i: int) -> tuple[str, str, str]:
    """(colour, dash, symbol) of the i-th series; dash and symbol differ too, for who sees no colours."""
    return COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], SYMBOLS[i % len(SYMBOLS)]


def line(name: str, points: Sequence[Point], i: int, *, markers: bool = False, **style: Any) -> Trace:
    """A curve through the points, thinned."""
    colour, dash, symbol = look(i)
    shown = thinned(points)
    return {
        "type": "scatter",
        "mode": "lines+markers" if markers else "lines",
        "name": plain(name),
        "x": [x for x, _ in shown],
        "y": [y for _, y in shown],
        "line": {"color": colour, "dash": dash, "width": 2} | style,
        "marker": {"color": colour, "symbol": symbol, "size": 7},
        "hovertemplate": "%{y:,.5~g}",
    }


def step_line(name: str, points: Sequence[Point], end: int, i: int, **style: Any) -> Trace:
    """A curve that holds each value until the next, and the last one to the end."""
    to_the_end = [(end, points[-1][1])] if end > points[-1][0] else []
    return line(name, [*points, *to_the_end], i, shape="hv", **style)


def axes(traces: Sequence[Trace], x: str, y: str, **yaxis: Any) -> dict[str, Any]:
    """The layout of curves over named axes."""
    return {
        "xaxis": {"title": {"text": plain(x)}},
        "yaxis": {"title": {"text": plain(y), "standoff": 8}} | yaxis,
        "hovermode": "x unified",
        "showlegend": len(traces) > 1,
    }


def grid_of_cells(columns: Sequence[str], rows: Sequence[str], unit: str, **cells: Any) -> Trace:
    """A heatmap of blocks down and modules across."""
    return {
        "type": "heatmap",
        "x": [plain(c).replace(".", ".<br>") for c in columns],
        "y": [plain(r) for r in rows],
        "colorscale": SCALE,
        "xgap": 2,
        "ygap": 2,
        "colorbar": {"title": {"text": unit, "side": "right"}, "thickness": 12},
        **cells,
    }


def grid_layout(rows: int) -> dict[str, Any]:
    return {
        "height": min(120 + 28 * max(4, rows), 2400),
        "hovermode": "closest",
        "showlegend": False,
        "xaxis": {"type": "category", "side": "top", "showgrid": False, "ticks": ""},
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False, "ticks": ""},
    }
