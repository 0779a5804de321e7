"""Span question answering: windows over the context that share document_stride tokens, with the answer's tokens."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from transformers import BatchEncoding, DataCollatorWithPadding

from rankwise.errors import ConfigError, DataError
from rankwise.train.labels import Baseline
from rankwise.train.prepared import Prepared, Source, require_padding
from rankwise.train.span_answers import Integers, SpanTruth
from rankwise.train.squad import as_lists

Answers = dict[str, list[Any]]
EVALUATION_ONLY = ["example", "offsets", "null_index"]


def prepare_spans(source: Source) -> Prepared:
    check_tokenizer(source)
    answers = {split: checked_answers(source, split) for split in ("train", "validation")}
    windows = {split: encode_windows(source, split, answers[split]) for split in answers}
    unanswerable = [not each["text"] for each in answers["validation"]]
    null_allowed = any(not each["text"] for split in answers.values() for each in split)
    share = sum(unanswerable) / len(unanswerable)
    return Prepared(
        task="span-qa",
        train=windows["train"].remove_columns(EVALUATION_ONLY),
        validation=windows["validation"].remove_columns(EVALUATION_ONLY),
        collator=DataCollatorWithPadding(source.tokenizer),
        truncated={split: several_windows(windows[split]) for split in windows},
        baseline=Baseline(name="never an answer", metric="f1", value=share) if null_allowed else None,
        spans=truth_of(source, answers["validation"], windows["validation"], null_allowed),
    )


def check_tokenizer(source: Source) -> None:
    require_padding(source.tokenizer)
    if not source.tokenizer.is_fast:
        raise ConfigError("span-qa needs a fast tokenizer (one with a tokenizer.json): only those know characters.")
    if source.tokenizer.padding_side != "right":
        raise ConfigError(
            "span-qa needs tokenizer.padding_side = 'right': padding on the left would move the answers' positions."
        )


def checked_answers(source: Source, split: str) -> list[Answers]:
    """Each row's answers as lists. Raises DataError where a text does not stand where answer_start says."""
    found = []
    contexts = source.values(split, "context")
    for row, (context, given) in enumerate(zip(contexts, source.values(split, "answers"), strict=True), start=1):
        where = f"the {split} split, row {row}"
        try:
            answers = as_lists(given)
            pairs = list(zip(answers["text"], answers["answer_start"], strict=True))
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"{where}: answers {given!r} are not SQuAD's; expected {{'text': [...], 'answer_start': [...]}} of "
                "equal length, empty for no answer."
            ) from None
        for text, start in pairs:
            if not text or start < 0 or context[start : start + len(text)] != text:
                there = context[max(start, 0) : max(start, 0) + len(text)]
                raise DataError(f"{where}: answer {text!r} is not at character {start} of its context: {there!r} is.")
        found.append(answers)
    return found


def encode_windows(source: Source, split: str, answers: Sequence[Answers]) -> datasets.Dataset:
    question, context = source.columns.column("question"), source.columns.column("context")
    rows = source.rows[split].select_columns([question, context])

    def encode(batch: dict[str, list[str]], places: list[int]) -> dict[str, Any]:
        questions = checked_questions(source, split, batch[question])
        return encode_batch(source, questions, batch[context], [answers[place] for place in places], places[0])

    return rows.map(
        encode, batched=True, with_indices=True, remove_columns=rows.column_names, desc=f"Tokenizing {split}"
    )


def count_windows(source: Source) -> int:
    """How many rows the training rows become. Raises ConfigError or DataError where they cannot be cut."""
    check_tokenizer(source)
    question, context = source.columns.column("question"), source.columns.column("context")
    windows = 0
    for batch in source.rows["train"].select_columns([question, context]).iter(batch_size=1000):
        questions = checked_questions(source, "train", batch[question])
        windows += len(cut_into_windows(source, questions, batch[context])["input_ids"])
    return windows


def checked_questions(source: Source, split: str, given: list[str]) -> list[str]:
    """Without the blanks before them, which would eat into the window. Raises DataError for one that is too long."""
    questions = [text.strip() for text in given]
    check_room(source, questions, split)
    return questions


def check_room(source: Source, questions: list[str], split: str) -> None:
    """Raises DataError where the question and the shared tokens leave nothing of max_length for the context."""
    config, tokenizer = source.config, source.tokenizer
    longest = max(questions, key=lambda text: len(tokenizer.tokenize(text)))
    room = config.max_length - len(tokenizer.tokenize(longest)) - tokenizer.num_special_tokens_to_add(pair=True)
    if room <= config.document_stride:
        raise DataError(
            f"the {split} split: the question {longest[:80]!r} leaves {room} of max_length={config.max_length} tokens "
            f"for the context; more than document_stride={config.document_stride} are needed. "
            "Raise max_length or lower document_stride."
        )


def encode_batch(
    source: Source, questions: list[str], contexts: list[str], answers: list[Answers], first: int
) -> dict[str, Any]:
    """Windows of a batch whose rows are `first`, `first` + 1, ..."""
    inputs = cut_into_windows(source, questions, contexts)
    examples = inputs.pop("overflow_to_sample_mapping")
    inputs.pop("offset_mapping")
    offsets = [context_offsets(inputs, window) for window in range(len(examples))]
    nulls = [null_index(ids, source.tokenizer.cls_token_id) for ids in inputs["input_ids"]]
    positions = [
        answer_tokens(offsets[window], answers[example], nulls[window]) for window, example in enumerate(examples)
    ]
    return {
        **inputs,
        "start_positions": [start for start, _ in positions],
        "end_positions": [end for _, end in positions],
        "example": [first + example for example in examples],
        "offsets": [each.tolist() for each in offsets],
        "null_index": nulls,
    }


def cut_into_windows(source: Source, questions: list[str], contexts: list[str]) -> BatchEncoding:
    return source.tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=source.config.max_length,
        stride=source.config.document_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


def context_offsets(inputs: BatchEncoding, window: int) -> Integers:
    """(tokens, 2): the characters of each token of the context, -1 for the question and special tokens."""
    encoding = inputs.encodings[window]
    inside = np.array([sequence == 1 for sequence in encoding.sequence_ids])
    return np.where(inside[:, None], np.array(encoding.offsets), -1)


def null_index(ids: list[int], cls_token_id: int | None) -> int:
    """Where "no answer" points: the class token, or the first token of a model that has none."""
    return ids.index(cls_token_id) if cls_token_id in ids else 0


def answer_tokens(offsets: Integers, answers: Answers, null: int) -> tuple[int, int]:
    """First and last token of the first answer; twice `null` if this window does not hold all of it."""
    if not answers["text"]:
        return null, null
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    inside = np.flatnonzero(offsets[:, 0] >= 0)
    if not len(inside) or offsets[inside[0], 0] > start or offsets[inside[-1], 1] < end:
        return null, null
    first = np.searchsorted(offsets[inside, 0], start, side="right") - 1
    last = np.searchsorted(offsets[inside, 1], end, side="left")
    return int(inside[first]), int(inside[last])


def several_windows(windows: datasets.Dataset) -> int:
    counts = np.bincount(np.array(windows["example"]))
    return int((counts > 1).sum())


def truth_of(source: Source, answers: list[Answers], windows: datasets.Dataset, null_allowed: bool) -> SpanTruth:
    rows = source.rows["validation"]
    ids = [str(name) for name in (rows["id"] if "id" in rows.column_names else range(len(rows)))]
    if len(set(ids)) < len(ids):
        raise DataError(f"column 'id' of the validation split names {len(ids) - len(set(ids))} rows twice.")
    return SpanTruth(
        ids=tuple(ids),
        contexts=tuple(source.values("validation", "context")),
        answers=tuple(tuple(each["text"]) for each in answers),
        windows=windows.select_columns(EVALUATION_ONLY),
        null_allowed=null_allowed,
    )
