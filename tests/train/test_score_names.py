"""The names by which a score can be asked for are those that the scores have."""

import numpy as np
import pytest

from rankwise.train.config import GenerationConfig
from rankwise.train.metrics import classification_scores, regression_scores, span_scores
from rankwise.train.scorers import SCORERS, score_names
from rankwise.train.span_answers import SpanTruth

TEXTS = ["a pub by the river, 12", "a cheap pub, 7"]
OFF = GenerationConfig()


@pytest.mark.parametrize("name", SCORERS)
def test_scores_of_text(name: str) -> None:
    found = SCORERS[name].scores(TEXTS, [[text] for text in TEXTS])
    assert set(SCORERS[name].names) == set(found)
    asked = GenerationConfig(score=name, rows=2)  # type: ignore[arg-type]
    assert set(score_names("seq2seq", 0, asked)) == {*found, "loss"}
    assert set(score_names("causal-lm", 0, asked)) == {*found, "loss", "perplexity"}


def test_a_causal_run_that_writes_nothing() -> None:
    assert score_names("causal-lm", 0, OFF) == ["perplexity", "loss"]


@pytest.mark.parametrize("classes", [2, 3])
def test_classes(classes: int) -> None:
    found = classification_scores(np.eye(classes), np.arange(classes), classes)
    assert set(score_names("classification", classes, OFF)) == {*found, "loss"}


def test_numbers() -> None:
    found = regression_scores(np.array([1.0, 2.0]), np.array([1.0, 3.0]))
    assert set(score_names("regression", 1, OFF)) == {*found, "loss"}


def test_spans() -> None:
    truth = SpanTruth(ids=("1", "2"), contexts=("a b", "c"), answers=(("a",), ()), windows=None, null_allowed=True)
    found = span_scores({"1": "a", "2": ""}, truth)
    assert set(score_names("span-qa", 0, OFF)) == {*found, "loss"}
