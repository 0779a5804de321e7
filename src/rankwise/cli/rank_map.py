"""Maps of a model, a line for each kind of module and a character for each block."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rankwise.report.grid import row_and_column, short

BARS = "▁▂▃▄▅▆▇█"
NONE = "·"
MOST_LINES = 40


def bar(share: float) -> str:
    """A character as high as a share of 1; a dot for nothing."""
    return NONE if share <= 0 else BARS[min(len(BARS), ceil(share * len(BARS))) - 1]


def curve(values: Sequence[float], width: int) -> str:
    """The values as bars from 0 to the largest, neighbours averaged so that they fit into the width."""
    pooled = [sum(part) / len(part) for part in _parts(values, width)]
    top = max(pooled, default=0)
    return "".join(bar(value / top if top > 0 else 0) for value in pooled)


def model_map(title: str, amounts: Mapping[str, int], most: Mapping[str, int], width: int) -> Group:
    """`amounts` of `most` by layer. Blocks that do not fit into the width share a character, which shows their mean."""
    cells = {row_and_column(name): (amounts.get(name, 0), full) for name, full in most.items()}
    blocks, modules = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (0, 1))
    names = short(modules)
    room = max(1, width - max(len(name) for name in names.values()) - 24)
    table = Table.grid(padding=(0, 2))
    for module in modules[:MOST_LINES]:
        row = [cells.get((block, module)) for block in blocks]
        drawn = "".join(_character([cell for cell in part if cell is not None]) for part in _parts(row, room))
        there = [cell for cell in row if cell is not None]
        total, full = (sum(cell[i] for cell in there) for i in (0, 1))
        table.add_row(escape(names[module]), Text(drawn, style="cyan"), f"{total:,} of {full:,}")
    return Group(Text(f"{title}: {_key(blocks, room)}"), table, *_left_out(len(modules) - MOST_LINES))


def _character(cells: Sequence[tuple[int, int]]) -> str:
    full = sum(cell[1] for cell in cells)
    return bar(sum(cell[0] for cell in cells) / full) if full else " "


def _parts(values: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """At most so many slices, of equal size but for the last."""
    size = max(1, ceil(len(values) / most))
    return [values[start : start + size] for start in range(0, len(values), size)]


def _key(blocks: Sequence[str], room: int) -> str:
    each = ceil(len(blocks) / room)
    many = "a bar for each block" if each == 1 else f"a bar for {each} of {len(blocks)} blocks"
    return f"{many}, {blocks[0]} to {blocks[-1]}" if len(blocks) > 1 else f"in {blocks[0]}"


def _left_out(modules: int) -> list[Text]:
    return [Text(f"and {modules:,} more kinds of modules")] if modules > 0 else []
