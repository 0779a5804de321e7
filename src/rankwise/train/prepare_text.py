"""Classification and regression: one text or a pair, and a label."""

import math
from collections.abc import Sequence
from typing import Any

import datasets
import pyarrow as pa
from transformers import DataCollatorWithPadding

from rankwise.errors import DataError
from rankwise.train.labels import label_values, labels_of, majority, mean_prediction
from rankwise.train.prepared import Prepared, Source, require_padding, too_long

SPLITS = ("train", "validation")


def prepare_classification(source: Source) -> Prepared:
    column = source.columns.column("label")
    labels = labels_of(source.rows["train"], column)
    ids = {}
    for split in SPLITS:
        where = f"the {split} split"
        ids[split] = labels.encode(label_values(source.rows[split], column, where), where)
    encoded, truncated = encode_splits(source, ids)
    return Prepared(
        task="classification",
        **encoded,
        collator=DataCollatorWithPadding(source.tokenizer),
        truncated=truncated,
        labels=labels,
        baseline=majority(ids["train"], ids["validation"], labels),
    )


def prepare_regression(source: Source) -> Prepared:
    numbers = {split: regression_targets(source, split) for split in SPLITS}
    encoded, truncated = encode_splits(source, numbers)
    return Prepared(
        task="regression",
        **encoded,
        collator=DataCollatorWithPadding(source.tokenizer),
        truncated=truncated,
        baseline=mean_prediction(numbers["train"], numbers["validation"]),
    )


def regression_targets(source: Source, split: str) -> list[float]:
    column = source.columns.column("label")
    dtype = source.rows[split].data.schema.field(column).type
    if not (pa.types.is_floating(dtype) or pa.types.is_integer(dtype)):
        raise DataError(f"the {split} split: column {column!r} holds {dtype}; regression needs numbers.")
    values = [float(value) for value in source.values(split, "label")]
    for row, value in enumerate(values, start=1):
        if not math.isfinite(value):
            raise DataError(f"the {split} split, row {row}: label {value} in column {column!r} is no finite number.")
    return values


def encode_splits(source: Source, labels: dict[str, Any]) -> tuple[dict[str, datasets.Dataset], dict[str, int]]:
    """({split: model inputs and "labels"}, {split: rows that were cut})."""
    require_padding(source.tokenizer)
    encoded, truncated = {}, {}
    for split in SPLITS:
        inputs = encode_split(source, split)
        truncated[split] = sum(inputs["cut"])
        encoded[split] = inputs.remove_columns("cut").add_column("labels", labels[split])
    return encoded, truncated


def encode_split(source: Source, split: str) -> datasets.Dataset:
    columns = [source.columns.column("text")]
    if source.columns.text_pair is not None:
        columns.append(source.columns.text_pair)
    rows = source.rows[split].select_columns(columns)

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return encode_texts(source, [batch[column] for column in columns])

    return rows.map(encode, batched=True, remove_columns=columns, desc=f"Tokenizing {split}")


def encode_texts(source: Source, texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Inputs of the model, and whether each row was "cut" (from the longer text of a pair first)."""
    limit = source.config.max_length
    inputs = source.tokenizer(*map(list, texts), truncation=True, max_length=limit)

    def full(row: int) -> int:
        return len(source.tokenizer(*(text[row] for text in texts), verbose=False)["input_ids"])

    return {**inputs, "cut": too_long(inputs["input_ids"], full, limit)}
