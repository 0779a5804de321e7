"""The rows that a learning rate is searched on: a part of the training rows, written down once.

The rows on which the comparison reports are not among them, for they are taken away before the part is drawn.
"""

from dataclasses import replace
from pathlib import Path

import datasets

from rankwise.compare.spec import SearchConfig
from rankwise.io.atomic import replaced_path
from rankwise.train.columns import find_columns
from rankwise.train.data import load_rows
from rankwise.train.data_config import DataConfig
from rankwise.train.drawing import draw, hold_out


def search_data(data: DataConfig, folder: Path) -> DataConfig:
    """The data of the search runs, whose files `write_search_rows` writes."""
    return replace(
        data,
        train=str(folder / "train.parquet"),
        validation=str(folder / "held_out.parquet"),
        subset=None,
        max_train_rows=None,
        max_validation_rows=None,
    )


def write_search_rows(data: DataConfig, search: SearchConfig, folder: Path) -> None:
    """Write the two files of `search_data`, unless they are there."""
    files = search_data(data, folder)
    if Path(files.train).is_file() and files.validation is not None and Path(files.validation).is_file():
        return
    whole = load_rows(data)
    prompt = find_columns(whole, data).prompt
    rows = draw(whole["train"], search.rows, prompt, search.seed)
    part = replace(data, validation_fraction=search.held_out, seed=search.seed)
    for name, split in zip(("train", "held_out"), hold_out(rows, prompt, part), strict=True):
        _write(split, folder / f"{name}.parquet")


def _write(rows: datasets.Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_path(path) as staging:
        rows.to_parquet(str(staging))
