"""A learning rate is chosen on training rows alone."""

import json
from pathlib import Path

import datasets
import pytest

import tiny
from rankwise.compare.search_rows import search_data, write_search_rows
from rankwise.compare.spec import SearchConfig
from rankwise.train.data import load_rows
from rankwise.train.data_config import DataConfig

ROWS = [{"text": f"row {n}", "label": n % 2} for n in range(60)]


def folder_data(folder: Path) -> DataConfig:
    (folder / "data").mkdir()
    tiny.write_rows(folder / "data" / "train.jsonl", ROWS[:40])
    tiny.write_rows(folder / "data" / "validation.jsonl", ROWS[40:])
    return DataConfig(train=str(folder / "data"))


def named_file(folder: Path) -> DataConfig:
    held = tiny.write_rows(folder / "held.jsonl", ROWS[40:])
    return DataConfig(train=tiny.write_rows(folder / "rows.jsonl", ROWS[:40]), validation=held)


def held_out(folder: Path) -> DataConfig:
    return DataConfig(train=tiny.write_rows(folder / "rows.jsonl", ROWS), validation_fraction=0.3, seed=3)


def capped(folder: Path) -> DataConfig:
    return DataConfig(train=tiny.write_rows(folder / "rows.jsonl", ROWS), validation_fraction=0.3, max_train_rows=30)


@pytest.mark.parametrize("make", [folder_data, named_file, held_out, capped])
def test_reported_rows_are_never_searched_on(make, tmp_path: Path) -> None:
    data, search = make(tmp_path), SearchConfig(rows=20, held_out=0.25)
    whole = load_rows(data)
    write_search_rows(data, search, tmp_path / "search")
    rows = load_rows(search_data(data, tmp_path / "search"))
    trained, deciding = set(rows["train"]["text"]), set(rows["validation"]["text"])
    assert (len(trained), len(deciding)) == (15, 5)
    assert not trained & deciding
    assert trained | deciding <= set(whole["train"]["text"])
    assert not (trained | deciding) & set(whole["validation"]["text"])


def test_a_prompt_is_trained_on_or_decides_not_both(tmp_path: Path) -> None:
    """E2E NLG has several texts for each prompt."""
    told = [{"prompt": f"name[{n % 12}]", "completion": f"text {n}"} for n in range(96)]
    data = DataConfig(train=tiny.write_rows(tmp_path / "told.jsonl", told), validation_fraction=0.25)
    write_search_rows(data, SearchConfig(rows=50, held_out=0.3), tmp_path / "search")
    rows = load_rows(search_data(data, tmp_path / "search"))
    assert (len(rows["train"]), len(rows["validation"])) == (32, 16)  # of 48 rows, two prompts: 15 would be less
    assert not set(rows["train"]["prompt"]) & set(rows["validation"]["prompt"])


def test_they_are_written_once(tmp_path: Path) -> None:
    data = held_out(tmp_path)
    write_search_rows(data, SearchConfig(rows=20), tmp_path / "search")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "search").iterdir()}
    write_search_rows(data, SearchConfig(rows=20), tmp_path / "search")
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "search").iterdir()} == before


def test_class_names_and_order_outlive_the_file(tmp_path: Path) -> None:
    """The labels of a hub data set are declared, in an order that is not the alphabet's."""
    names = datasets.ClassLabel(names=["zebra", "ant"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    rows = datasets.Dataset.from_list(ROWS, features=features)
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    data = DataConfig(train=str(tmp_path / "rows.parquet"))
    write_search_rows(data, SearchConfig(rows=30), tmp_path / "search")
    found = load_rows(search_data(data, tmp_path / "search"))["train"]
    assert found.features["label"] == names
    assert json.dumps(found[0])
