"""SQuAD's nested files as flat rows: {"id", "context", "question", "answers": {"text", "answer_start"}}."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwise.errors import DataError


def flatten_squad(articles: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """One row for each question of SQuAD v1.1 or v2 (no answer: empty lists)."""
    try:
        return [row for article in articles for row in questions(article)]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not SQuAD's format, {error} is missing or misplaced; expected "
            "data > paragraphs > context, qas > id, question, answers > text, answer_start."
        ) from None


def questions(article: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for paragraph in article["paragraphs"]:
        for qa in paragraph["qas"]:
            yield {
                "id": str(qa["id"]),
                "context": paragraph["context"],
                "question": qa["question"],
                "answers": as_lists(qa["answers"]),
            }


def as_lists(answers: Any) -> dict[str, list[Any]]:
    """[{"text", "answer_start"}] as {"text": [...], "answer_start": [...]}; the latter is given back as it is."""
    if isinstance(answers, dict):
        return {"text": answers["text"], "answer_start": answers["answer_start"]}
    return {
        "text": [answer["text"] for answer in answers],
        "answer_start": [answer["answer_start"] for answer in answers],
    }
