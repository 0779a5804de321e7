"""From start and end logits of overlapping windows to one answer for each question."""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from rankwise.errors import ConfigError

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class SpanTruth:
    """The validation examples, and the windows cut from them in the order of the model's predictions."""

    ids: tuple[str, ...]
    contexts: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    """Accepted answers of each example; empty: the context does not hold one."""
    windows: datasets.Dataset
    """"example" (index into ids), "offsets" ((tokens, 2) characters of the context, -1 outside it), "null_index"
    (the token whose logits stand for "no answer")."""
    null_allowed: bool
    """Whether training or validation has a question without an answer (SQuAD v2)."""


@dataclass(frozen=True, kw_only=True)
class SpanDecoding:
    """How an answer is chosen."""

    n_best: int = 20
    """So many best starts and so many best ends are combined."""
    max_answer_length: int = 30
    """Longest answer in tokens."""
    null_threshold: float = 0.0
    """No answer is given if its score exceeds the best answer's by more than this."""

    def __post_init__(self) -> None:
        if self.n_best < 1 or self.max_answer_length < 1:
            raise ConfigError(f"n_best={self.n_best} and max_answer_length={self.max_answer_length} must be 1 or more.")


@dataclass(frozen=True)
class Span:
    """Characters start..end of a context."""

    score: float
    start: int
    end: int


def answer_spans(
    starts: Floats,  # (windows, tokens), padding behind
    ends: Floats,  # (windows, tokens)
    truth: SpanTruth,
    decoding: SpanDecoding,
) -> dict[str, str]:
    """{example id: answer}, the empty text for no answer."""
    best: dict[int, Span] = {}
    null: dict[int, float] = {}
    for place, window in enumerate(truth.windows.with_format("numpy")):
        example, tokens = int(window["example"]), len(window["offsets"])
        start, end = starts[place, :tokens], ends[place, :tokens]
        at = int(window["null_index"])
        # a window without the answer votes for null, so the least sure window decides
        null[example] = min(null.get(example, np.inf), float(start[at] + end[at]))
        span = best_span(start, end, window["offsets"], decoding)
        if span is not None and (example not in best or span.score > best[example].score):
            best[example] = span
    return {
        name: chosen(truth.contexts[example], best.get(example), null[example], truth.null_allowed, decoding)
        for example, name in enumerate(truth.ids)
    }


def chosen(context: str, span: Span | None, null: float, null_allowed: bool, decoding: SpanDecoding) -> str:
    if span is None or (null_allowed and null - span.score > decoding.null_threshold):
        return ""
    return context[span.start : span.end]


def best_span(
    start: Floats,  # (tokens,)
    end: Floats,  # (tokens,)
    offsets: Integers,  # (tokens, 2)
    decoding: SpanDecoding,
) -> Span | None:
    """The pair of largest start + end that lies in the context, in order, and is not too long; None if none does."""
    inside = np.flatnonzero(offsets[:, 0] >= 0)
    firsts = top(start, inside, decoding.n_best)
    lasts = top(end, inside, decoding.n_best)
    length = lasts[None, :] - firsts[:, None] + 1
    score = start[firsts][:, None].astype(np.float64) + end[lasts][None, :]
    score = np.where((length >= 1) & (length <= decoding.max_answer_length), score, -np.inf)
    if not np.isfinite(score).any():
        return None
    row, column = np.unravel_index(np.argmax(score), score.shape)
    return Span(float(score[row, column]), int(offsets[firsts[row], 0]), int(offsets[lasts[column], 1]))


def top(values: Floats, places: Integers, count: int) -> Integers:
    """The `count` places of the largest values, the first one of equals first."""
    return places[np.argsort(-values[places], kind="stable")[:count]]
