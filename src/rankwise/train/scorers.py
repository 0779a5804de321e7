"""What generated text is scored by, the setting `generation.score`, and whether it fits the run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from rankwise.errors import ConfigError, DataError
from rankwise.train.columns import Columns
from rankwise.train.config import GenerationConfig
from rankwise.train.final_answer import final_number, number_scores, query_scores
from rankwise.train.nlg_scores import nlg_scores
from rankwise.train.text_scores import text_scores

Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores of texts, given the accepted texts of each."""

    scores: Callable[[Sequence[str], Sequence[Sequence[str]]], Scores]
    names: tuple[str, ...]
    """Of the scores; the first decides a seq2seq run."""
    by_prompt: bool = False
    """Validation rows with the same prompt are references of one text."""
    can_score: Callable[[str], bool] | None = None
    """Whether a reference holds what is compared. None: any text does."""


SCORERS = {
    "text": Scorer(scores=text_scores, names=("rougeL", "rouge1", "rouge2", "bleu", "exact_match")),
    "nlg": Scorer(scores=nlg_scores, names=("bleu", "nist", "meteor", "rougeL", "cider"), by_prompt=True),
    "number": Scorer(
        scores=number_scores, names=("accuracy",), can_score=lambda reference: final_number(reference) is not None
    ),
    "query": Scorer(scores=query_scores, names=("accuracy",)),
}


def score_names(task: str, classes: int, settings: GenerationConfig) -> list[str]:
    """Every score that a run of the task may have, so that a name can be checked before there is one."""
    generated = SCORERS[settings.score].names
    named = {
        "classification": ("accuracy", "f1" if classes == 2 else "f1_macro", "matthews"),
        "regression": ("pearson", "spearman", "mse"),
        "span-qa": tuple(f"{part}{name}" for part in ("", "hasans_", "noans_") for name in ("f1", "exact_match")),
        "causal-lm": ("perplexity", *(generated if settings.rows else ())),
        "seq2seq": generated,
    }
    return [*named[task], "loss"]


def scorer_for(settings: GenerationConfig, task: str, columns: Columns) -> Scorer:
    """Raises ConfigError where no text would be generated."""
    score, rows = settings.score, settings.rows
    if task == "causal-lm" and rows and columns.prompt is None:
        raise ConfigError(
            f"generation.rows={rows} needs prompts to answer, and the data has {columns.used()}. Give rows with a "
            "prompt and a completion, or set generation.rows=0."
        )
    if score != "text" and task not in ("causal-lm", "seq2seq"):
        raise ConfigError(
            f"generation.score={score!r} is for generated text, and task {task!r} generates none. Leave it out, or "
            "choose task causal-lm or seq2seq."
        )
    if score != "text" and task == "causal-lm" and not rows:
        raise ConfigError(
            f"generation.score={score!r} needs text to score: set generation.rows to how many validation prompts are "
            "answered."
        )
    return SCORERS[score]


def check_references(score: str, validation: datasets.Dataset, columns: Columns) -> None:
    """Raises DataError for a completion that does not hold what is compared."""
    can_score = SCORERS[score].can_score
    if can_score is None:
        return
    for row, completion in enumerate(validation[columns.column("completion")], start=1):
        if not can_score(content(completion)):
            raise DataError(
                f"validation row {row} has no {score} in its completion {content(completion)[:80]!r}, which "
                f"generation.score={score!r} compares with. Correct the row, or choose another score."
            )


def content(completion: Any) -> str:
    """The text of a completion, which may be a list of messages."""
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def references_by_prompt(prompts: Sequence[Any], references: Sequence[str]) -> dict[int, list[str]]:
    """{place of the first row with a prompt: the references of all rows with that prompt}."""
    first: dict[str, int] = {}
    found: dict[int, list[str]] = {}
    for place, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
        found.setdefault(first.setdefault(repr(prompt), place), []).append(reference)
    return found
