"""Tables that more than one command prints."""

import re
from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from rankwise.train.run import Result


def result_table(result: Result) -> Table:
    """What a run reached and what it cost."""
    table = Table(title=f"{result.task}, {result.steps:,} steps", show_header=False)
    for name, value in result.scores.items():
        before = f"  (untouched model {result.before[name]:.4f})" if name in result.before else ""
        table.add_row(name, f"{value:.4f}{before}")
    if result.baseline is not None:
        table.add_row(f"{result.baseline['name']}", f"{result.baseline['metric']} {result.baseline['value']:.4f}")
    table.add_row("trainable at the start", _share(result.trainable_start, result.total_parameters))
    table.add_row("trainable at the end", _share(result.trainable_end, result.total_parameters))
    table.add_row("training time", f"{result.seconds:.0f} s")
    table.add_row("peak memory", f"{result.peak_memory / 2**20:,.0f} MiB")
    return table


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / total:.3f} %)"


def layer_table(ranks: Mapping[str, int], frozen: list[str]) -> Table:
    """Live ranks by layer (rows) and module (columns), with the letters of frozen projections behind them."""
    cells: dict[tuple[str, str], str] = {}
    for name, rank in ranks.items():
        dead = [t for t in ("A", "B") if f"{name}.{t}" in frozen]
        cells[_row_and_column(name)] = f"{rank}" + (f" {''.join(dead)}" if dead else "")
    rows, columns = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (0, 1))
    short_rows, short_columns = _short(rows), _short(columns)
    table = Table(title="live ranks", caption="A, B: frozen projections" if frozen else None)
    table.add_column("layer", no_wrap=True)
    for column in columns:
        table.add_column(escape(short_columns[column]).replace(".", ".\n"), justify="right")
    for row in rows:
        table.add_row(escape(short_rows[row]), *(cells.get((row, column), "") for column in columns))
    return table


def _row_and_column(name: str) -> tuple[str, str]:
    """A module's path is cut behind its block number: "encoder.layer.3" and "attention.self.query"."""
    match = re.match(r"(.*?\.\d+)\.(.+)", name)
    return (match[1], match[2]) if match else ("(outside)", name)


def _short(names: list[str]) -> dict[str, str]:
    """Each name's shortest ending, by whole components, that no other name ends in; block numbers keep their word."""
    short = {}
    for name in names:
        parts = name.split(".")
        least = 2 if parts[-1].isdigit() else 1
        endings = [".".join(parts[-count:]) for count in range(min(least, len(parts)), len(parts) + 1)]
        others = [other for other in names if other != name]
        short[name] = next((e for e in endings if not any(f".{o}".endswith(f".{e}") for o in others)), name)
    return short
