"""Tables that more than one command prints."""

from collections.abc import Mapping
from itertools import islice

from rich.markup import escape
from rich.table import Table

from rankwise.report.grid import MOST_COLUMNS, row_and_column, short
from rankwise.train.run import Result

MOST_ROWS = 500


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
        cells[row_and_column(name)] = f"{rank}" + (f" {''.join(dead)}" if dead else "")
    rows, columns = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (0, 1))
    if len(columns) > MOST_COLUMNS:
        return _list_of_layers(ranks)
    short_rows, short_columns = short(rows), short(columns)
    table = Table(title="live ranks", caption="A, B: frozen projections" if frozen else None)
    table.add_column("layer", no_wrap=True)
    for column in columns:
        table.add_column(escape(short_columns[column]).replace(".", ".\n"), justify="right")
    for row in rows:
        table.add_row(escape(short_rows[row]), *(cells.get((row, column), "") for column in columns))
    return table


def _list_of_layers(ranks: Mapping[str, int]) -> Table:
    left_out = len(ranks) - MOST_ROWS
    table = Table("layer", "live ranks", caption=f"and {left_out:,} more layers" if left_out > 0 else None)
    for name, rank in islice(ranks.items(), MOST_ROWS):
        table.add_row(escape(name), f"{rank}")
    return table
