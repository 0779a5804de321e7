"""Scores of generated text that any task can have: overlap of words, and equality."""

from collections.abc import Sequence

from torchmetrics.functional.text import rouge_score, sacre_bleu_score

Scores = dict[str, float]


def text_scores(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """rouge1, rouge2, rougeL (F of stemmed words, best reference), bleu (SacreBLEU 13a), exact_match."""
    several = [list(each) for each in references]
    keys = ("rouge1", "rouge2", "rougeL")
    rouge = rouge_score(list(predicted), several, rouge_keys=keys, use_stemmer=True, accumulate="best")
    return {
        **{key: float(rouge[f"{key}_fmeasure"]) for key in keys},
        "bleu": float(sacre_bleu_score(list(predicted), several)),
        "exact_match": exact_match(predicted, references),
    }


def exact_match(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of texts equal to one of their references, new lines and blanks as one blank and none at either end.

    Some tokenizers, such as T5's, know no new line: what they write could never be equal to a text of two lines.
    """
    hits = [
        _one_line(text) in {_one_line(accepted) for accepted in each}
        for text, each in zip(predicted, references, strict=True)
    ]
    return sum(hits) / len(hits)


def _one_line(text: str) -> str:
    return " ".join(text.split())
