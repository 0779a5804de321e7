"""What causal and sequence-to-sequence rows have in common."""

from collections.abc import Callable
from typing import Any

import datasets
import pyarrow as pa

from rankwise.errors import DataError
from rankwise.train.prepared import Source

SPLITS = ("train", "validation")
Batch = dict[str, list[Any]]


def hold_text(source: Source) -> bool:
    """Whether prompts and completions are text, not lists of messages. Raises DataError for anything else."""
    columns = [source.columns.column(role) for role in ("prompt", "completion")]
    for split in SPLITS:
        types = [source.rows[split].data.schema.field(column).type for column in columns]
        texts = [pa.types.is_string(each) or pa.types.is_large_string(each) for each in types]
        lists = [pa.types.is_list(each) or pa.types.is_large_list(each) for each in types]
        if not all(texts) and not all(lists):
            held = {column: str(each) for column, each in zip(columns, types, strict=True)}
            raise DataError(
                f"the {split} split: prompt and completion must both be text, or both lists of messages; "
                f"they hold {held}."
            )
    return all(texts)


def mapped(source: Source, split: str, encode: Callable[[Batch], Batch]) -> datasets.Dataset:
    """What `encode` makes of each batch, and nothing else of the rows."""
    rows = source.rows[split]
    used = list(source.columns.used().values())
    return rows.select_columns(used).map(encode, batched=True, remove_columns=used, desc=f"Preparing {split}")


def cut_rows(rows: dict[str, datasets.Dataset]) -> dict[str, int]:
    return {split: sum(each["cut"]) for split, each in rows.items()}
