"""WikiSQL's own files as prompts and queries, which `rankwise compare` reads.

    python benchmarks/papers/wikisql.py WikiSQL/data wikisql

The first folder holds train.jsonl and dev.jsonl (or validation.jsonl), as github.com/salesforce/WikiSQL has them;
beside them train.tables.jsonl and so on, which have the columns' names. Without tables a column is called by its
number, and the prompt is the question alone.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<", "OP")


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name, stems in (("train", ("train",)), ("validation", ("dev", "validation"))):
        file = next((source / f"{stem}.jsonl" for stem in stems if (source / f"{stem}.jsonl").is_file()), None)
        if file is None:
            sys.exit(f"{source} has no {' or '.join(f'{stem}.jsonl' for stem in stems)}.")
        headers = {table["id"]: table["header"] for table in lines(file.with_name(f"{file.stem}.tables.jsonl"))}
        with (target / f"{name}.jsonl").open("w", encoding="utf-8") as out:
            for row in lines(file):
                out.write(json.dumps(as_text(row, headers.get(row["table_id"]))) + "\n")


def lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a file, none if it is not there."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def as_text(row: Mapping[str, Any], header: Sequence[str] | None) -> dict[str, str]:
    """{"prompt": columns and question, "completion": the query}."""
    columns = "" if header is None else f"Columns: {', '.join(header)}\n"
    return {"prompt": f"{columns}Question: {row['question']}\nQuery:", "completion": " " + query(row["sql"], header)}


def query(sql: Mapping[str, Any], header: Sequence[str] | None) -> str:
    """SELECT COUNT(col5) FROM table WHERE col3 = 'Butler CC (KS)'"""
    chosen, function = called(sql["sel"], header), AGGREGATES[sql["agg"]]
    conditions = [f"{called(place, header)} {OPERATORS[sign]} {quoted(value)}" for place, sign, value in sql["conds"]]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {f'{function}({chosen})' if function else chosen} FROM table{where}"


def called(place: int, header: Sequence[str] | None) -> str:
    return f"col{place}" if header is None else header[place]


def quoted(value: str | int | float) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
