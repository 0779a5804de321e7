"""Which column plays which role."""

import pytest

from rankwise.errors import DataError
from rankwise.train.columns import detect_columns
from rankwise.train.data_config import DataConfig

NO_FILE = DataConfig(train="x.jsonl")
DETECTED = [
    (["sentence", "label", "idx"], {"text": "sentence", "label": "label"}),
    (["sentence1", "sentence2", "label"], {"text": "sentence1", "text_pair": "sentence2", "label": "label"}),
    (["question", "sentence", "label"], {"text": "question", "text_pair": "sentence", "label": "label"}),
    (["premise", "hypothesis", "label"], {"text": "premise", "text_pair": "hypothesis", "label": "label"}),
    (["question1", "question2", "label"], {"text": "question1", "text_pair": "question2", "label": "label"}),
    (["text", "label"], {"text": "text", "label": "label"}),
    (["text"], {"text": "text"}),
    (["messages", "id"], {"messages": "messages"}),
    (["prompt", "completion"], {"prompt": "prompt", "completion": "completion"}),
    (["document", "summary", "id"], {"prompt": "document", "completion": "summary"}),
    (["id", "dialogue", "summary"], {"prompt": "dialogue", "completion": "summary"}),
    (["article", "highlights"], {"prompt": "article", "completion": "highlights"}),
    (["question", "answer"], {"prompt": "question", "completion": "answer"}),
    (
        ["id", "context", "question", "answers"],
        {"context": "context", "question": "question", "answers": "answers"},
    ),
]


@pytest.mark.parametrize(("names", "roles"), DETECTED, ids=lambda value: "+".join(value))
def test_known_shapes_are_detected(names: list[str], roles: dict[str, str]) -> None:
    assert detect_columns(names, NO_FILE).used() == roles


def test_named_columns_win() -> None:
    named = DataConfig(train="x.jsonl", text="body", label="stars")
    assert detect_columns(["body", "stars", "text", "label"], named).used() == {"text": "body", "label": "stars"}
    half = DataConfig(train="x.jsonl", label="label_text")
    assert detect_columns(["text", "label", "label_text"], half).used() == {"text": "text", "label": "label_text"}
    single = DataConfig(train="x.jsonl", text="sentence1")
    assert detect_columns(["sentence1", "sentence2", "label"], single).text_pair is None


def test_a_misspelt_column_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"notes.csv has no column 'lable'.*\['text', 'label'\].*Did you mean 'label'"):
        detect_columns(["text", "label"], DataConfig(train="x", label="lable"), "notes.csv")


def test_unknown_columns_are_listed() -> None:
    with pytest.raises(DataError, match=r"pairs.csv: the columns \['mr', 'ref'\] fit no task.*`prompt:`"):
        detect_columns(["mr", "ref"], NO_FILE, "pairs.csv")
