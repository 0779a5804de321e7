"""A model's layers as rows and columns, by short names: blocks down, the modules of a block across."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

MOST_COLUMNS = 60


@dataclass(frozen=True)
class Grid:
    """`cells[name]` is the row and the column of a layer; rows and columns bear names as short as they can be told."""

    rows: list[str]
    columns: list[str]
    cells: dict[str, tuple[int, int]]


def grid(names: Iterable[str]) -> Grid:
    """Rows and columns in the order in which the layers come; a single column where there would be too many."""
    where = {name: row_and_column(name) for name in names}
    if len({column for _, column in where.values()}) > MOST_COLUMNS:
        return Grid(list(where), ["layer"], {name: (i, 0) for i, name in enumerate(where)})
    rows, columns = (list(dict.fromkeys(cell[axis] for cell in where.values())) for axis in (0, 1))
    at_row, at_column = ({name: i for i, name in enumerate(axis)} for axis in (rows, columns))
    cells = {name: (at_row[row], at_column[column]) for name, (row, column) in where.items()}
    short_rows, short_columns = short(rows), short(columns)
    return Grid([short_rows[r] for r in rows], [short_columns[c] for c in columns], cells)


def row_and_column(name: str) -> tuple[str, str]:
    """A module's path is cut behind its block number: "encoder.layer.3" and "attention.self.query"."""
    match = re.match(r"(.*?\.\d+)\.(.+)", name)
    return (match[1], match[2]) if match else ("(outside)", name)


def short(names: list[str]) -> dict[str, str]:
    """Each name's shortest ending, by whole components, that no other name ends in; block numbers keep their word."""
    endings = {name: _endings(name) for name in names}
    shared = Counter(ending for all_ in endings.values() for ending in all_)
    found = {}
    for name in names:
        least = 2 if len(endings[name]) > 1 and endings[name][0].isdigit() else 1
        found[name] = next((e for e in endings[name][least - 1 :] if shared[e] == 1), name)
    return found


def _endings(name: str) -> list[str]:
    """ "a.b.c" ends in "c", "b.c" and "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
