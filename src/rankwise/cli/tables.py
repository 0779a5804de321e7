"""Tables that more than one command prints."""

import re
from collections import Counter
from collections.abc import Mapping
from itertools import islice

from rich.markup import escape
from rich.table import Table

from rankwise.train.run import Result

MOST_COLUMNS, MOST_ROWS = 60, 500


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
    if len(columns) > MOST_COLUMNS:
        return _list_of_layers(ranks)
    short_rows, short_columns = _short(rows), _short(columns)
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


def _row_and_column(name: str) -> tuple[str, str]:
    """A module's path is cut behind its block number: "encoder.layer.3" and "attention.self.query"."""
    match = re.match(r"(.*?\.\d+)\.(.+)", name)
    return (match[1], match[2]) if match else ("(outside)", name)


def _short(names: list[str]) -> dict[str, str]:
    """Each name's shortest ending, by whole components, that no other name ends in; block numbers keep their word."""
    endings = {name: _endings(name) for name in names}
    shared = Counter(ending for all_ in endings.values() for ending in all_)
    short = {}
    for name in names:
        least = 2 if len(endings[name]) > 1 and endings[name][0].isdigit() else 1
        short[name] = next((e for e in endings[name][least - 1 :] if shared[e] == 1), name)
    return short


def _endings(name: str) -> list[str]:
    """ "a.b.c" ends in "c", "b.c" and "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
