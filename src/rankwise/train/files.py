"""Reads one local data file into a table: .jsonl, .json, .csv, .tsv, .parquet.

Text stays exactly what the file says: in .csv and .tsv only the label column may become numbers, "NA" and "007" stay
words, and a missing value in .json stays missing, to be answered with an error later.
"""

import collections
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from rankwise.errors import DataError
from rankwise.train.squad import flatten_squad

Row = dict[str, Any]
EXAMPLE = '{"text": "...", "label": "..."}'
MOST_LINE = 16 * 2**20  # bytes: far above any text that a model reads, far below what would fill the memory


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the reader must know about columns before they are read."""

    label: str
    """The one column of a .csv in which digits mean numbers, if all of its values are digits."""
    label_is_text: bool = False
    """Digits are words there as well: the training rows have labels such as "1", "2" and "other"."""
    names: Collection[str]
    """Columns that must be readable; any other is left out if its values do not share one type."""


def read_file(path: Path, wanted: Wanted) -> datasets.Dataset:
    """All rows of `path`, which exists. Raises DataError when it cannot be read or holds no rows."""
    if path.suffix not in READERS:
        known = ", ".join(READERS)
        raise DataError(f"{path}: unknown kind of data file {path.suffix!r}; known are {known}.")
    table = READERS[path.suffix](path, wanted)
    if table.num_rows == 0:
        raise DataError(f"{path} holds no rows; a data file needs at least one.")
    return datasets.Dataset(table)


def read_jsonl(path: Path, wanted: Wanted) -> pa.Table:
    return table_from(list(jsonl_rows(path)), path, wanted)


def jsonl_rows(path: Path) -> Iterator[Row]:
    """One object a line. Blank lines are skipped; anything else that is no object is an error with its line."""
    for number, line in enumerate(short_lines(path), start=1):
        if line.strip():
            yield parse_line(line, f"{path}, line {number}", first=number == 1)


def short_lines(path: Path) -> Iterator[bytes]:
    """The lines as bytes: only \\n ends a line, and a bad byte is found in its line. An endless one is an error."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, MOST_LINE), b""), start=1):
            if len(line) == MOST_LINE and not line.endswith(b"\n"):
                raise DataError(
                    f"{path}, line {number}: longer than {MOST_LINE:,} bytes. Is every row on a line of its own?"
                )
            yield line


def refuse_bad_line(path: Path) -> None:
    """Raise DataError, with its number, at the first line that is too long or not UTF-8."""
    for number, line in enumerate(short_lines(path), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number}: {not_utf8(error)}") from None


def not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start + 1}). Save the file as UTF-8."


def parse_line(line: bytes, where: str, *, first: bool) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {not_utf8(error)}") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg}, column {error.colno}). Every line must be one object such as {EXAMPLE}."
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists nested as deep
        raise DataError(f"{where}: cannot be read as JSON ({error}).") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {kind(row)}, not an object. Every line must be an object such as {EXAMPLE}.")
    return row


def read_json(path: Path, wanted: Wanted) -> pa.Table:
    """A list of objects, {"data": [objects]}, or SQuAD's own nesting."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {number}: {not_utf8(error)}") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}). "
            "A file with one object a line must be called .jsonl."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}).") from None
    if isinstance(content, dict) and "data" in content:
        content = content["data"]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DataError(f'{path}: needs a list of objects, or {{"data": [...]}} as in SQuAD; got {kind(content)}.')
    rows = flatten_squad(content, path) if any("paragraphs" in row for row in content) else content
    return table_from(rows, path, wanted)


def read_csv(path: Path, wanted: Wanted) -> pa.Table:
    return read_delimited(path, wanted, pa_csv.ParseOptions(newlines_in_values=True))


def read_tsv(path: Path, wanted: Wanted) -> pa.Table:
    """A quote is a character like any other in .tsv: GLUE's files have unbalanced ones."""
    return read_delimited(path, wanted, pa_csv.ParseOptions(delimiter="\t", quote_char=False))


def read_delimited(path: Path, wanted: Wanted, parse: pa_csv.ParseOptions) -> pa.Table:
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path} is empty; it needs a line of column names and at least one row.")
    if size > MOST_LINE:
        collections.deque(short_lines(path), maxlen=0)
    # one block, or the label's type would be guessed from the first megabyte alone
    whole = pa_csv.ReadOptions(block_size=min(size + 1, 2**31 - 1))
    try:
        with pa_csv.open_csv(path, read_options=whole, parse_options=parse) as reader:
            names = reader.schema.names
        words = {name: pa.string() for name in names if wanted.label_is_text or name != wanted.label}
        convert = pa_csv.ConvertOptions(column_types=words, null_values=[""], strings_can_be_null=False)
        table = pa_csv.read_csv(path, read_options=whole, parse_options=parse, convert_options=convert)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        refuse_bad_line(path)
        said = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as {path.suffix}: {said[:300]}.") from None
    return refuse_duplicates(table, path)


def read_parquet(path: Path, wanted: Wanted) -> pa.Table:
    try:
        table = refuse_duplicates(pa_parquet.read_table(path), path)
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split()).rstrip(".")  # pyarrow's end in full stops and in new lines
        raise DataError(f"{path}: cannot be read as .parquet: {said}.") from None
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # pandas' categories, which datasets does not know
            table = table.set_column(place, field.name, table.column(place).cast(field.type.value_type))
    return table


def refuse_duplicates(table: pa.Table, path: Path) -> pa.Table:
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: columns {twice} occur more than once; rename all but one of each.")
    return table


READERS: dict[str, Callable[[Path, Wanted], pa.Table]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}


def table_from(rows: list[Row], path: Path, wanted: Wanted) -> pa.Table:
    """A column for each key that occurs; a row without it holds a null there."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (ValueError, TypeError, OverflowError) as error:
            if name in wanted.names:
                raise DataError(f"{path}: column {name!r} {mixture(values, error)}") from None
    return pa.table(columns)


def mixture(values: list[Any], error: Exception) -> str:
    """Why the values have no common type, with the first row (from 1) of each kind."""
    first: dict[str, int] = {}
    for row, value in enumerate(values, start=1):
        if value is not None:
            first.setdefault(kind(value), row)
    if len(first) < 2:
        return f"cannot be stored: {error}."
    kinds = " and ".join(f"{name} (first in row {row})" for name, row in first.items())
    return f"mixes {kinds}; write all of its values as one type."


KINDS = {str: "text", bool: "true/false", int: "whole number", float: "number", list: "list", dict: "object"}


def kind(value: object) -> str:
    return KINDS.get(type(value), "null")
