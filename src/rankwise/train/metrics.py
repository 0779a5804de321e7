"""Metrics of each task, computed by torchmetrics; those of generated text are in scorers.py.

All are shares or correlations, at most 1, but mse, perplexity and what scorers.py says of its own.

What is undefined is nan: a correlation with a constant, and everything where a prediction is not finite. Only Matthews'
coefficient is 0 for a constant, as scikit-learn and GLUE have it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.classification import (
    binary_f1_score,
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
)
from torchmetrics.functional.text import squad
from transformers import EvalPrediction, PreTrainedTokenizerBase

from rankwise.errors import ConfigError
from rankwise.train.labels import LabelSet
from rankwise.train.scorers import SCORERS, Scorer, references_by_prompt
from rankwise.train.span_answers import SpanDecoding, SpanTruth, answer_spans

Array = NDArray[Any]
Scores = dict[str, float]
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The metrics of a task; `compute` is what Trainer calls compute_metrics."""

    primary: str
    """Name of the metric that decides."""
    higher_is_better: bool
    compute: Callable[[EvalPrediction], Scores] | None
    """None for causal-lm, whose metric comes from the loss: see `mean_token_loss` and `perplexity`."""


def metrics_for(
    task: str,
    *,
    labels: LabelSet | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    spans: SpanTruth | None = None,
    decoding: SpanDecoding | None = None,
    scorer: Scorer = SCORERS["text"],
    prompts: Sequence[str] | None = None,
    references: Sequence[str] | None = None,
) -> Metrics:
    """`labels` for classification, `spans` (and `decoding`) for span-qa, `tokenizer`, `references` and `scorer` for
    seq2seq. Raises ConfigError where one of them is missing.

    `references` and `prompts` are texts of the validation rows, in their order and whole; `prompts` only for a scorer
    that takes rows with one prompt together.
    """
    if task == "classification" and labels is not None:
        compute: Callable[[EvalPrediction], Scores] = partial(from_logits, classes=len(labels))
        return Metrics(primary="accuracy", higher_is_better=True, compute=compute)
    if task == "regression":
        return Metrics(primary="pearson", higher_is_better=True, compute=from_numbers)
    if task == "span-qa" and spans is not None:
        compute = partial(from_spans, truth=spans, decoding=decoding or SpanDecoding())
        return Metrics(primary="f1", higher_is_better=True, compute=compute)
    if task == "seq2seq" and tokenizer is not None and references is not None:
        compute = partial(from_tokens, tokenizer=tokenizer, scorer=scorer, prompts=prompts, references=references)
        return Metrics(primary=scorer.names[0], higher_is_better=True, compute=compute)
    if task == "causal-lm":
        return Metrics(primary="perplexity", higher_is_better=False, compute=None)
    raise ConfigError(f"no metrics for task {task!r} without its labels, spans, or tokenizer and references.")


def from_logits(prediction: EvalPrediction, classes: int) -> Scores:
    return classification_scores(first(prediction.predictions), prediction.label_ids, classes)


def from_numbers(prediction: EvalPrediction) -> Scores:
    return regression_scores(first(prediction.predictions), prediction.label_ids)


def from_spans(prediction: EvalPrediction, truth: SpanTruth, decoding: SpanDecoding) -> Scores:
    starts, ends = prediction.predictions[:2]
    return span_scores(answer_spans(starts, ends, truth, decoding), truth)


def from_tokens(
    prediction: EvalPrediction,
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    prompts: Sequence[str] | None,
    references: Sequence[str],
) -> Scores:
    """Scores against whole references: the label ids end at max_target_length, where an answer may not have begun."""
    predicted = decode(first(prediction.predictions), tokenizer)
    accepted = [text.strip() for text in references]
    if prompts is None:
        return scorer.scores(predicted, [[text] for text in accepted])
    together = references_by_prompt(prompts, accepted)
    return scorer.scores([predicted[place] for place in together], list(together.values()))


def first(predictions: Any) -> Array:
    """Encoder-decoders give further outputs beside the logits."""
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)


def decode(ids: Array, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of token ids in which Trainer has padded with -100."""
    shown = np.where(ids == IGNORED, tokenizer.pad_token_id, ids)
    return [text.strip() for text in tokenizer.batch_decode(shown, skip_special_tokens=True)]


def classification_scores(logits: Array, labels: Array, classes: int) -> Scores:
    """accuracy, matthews, and f1 (two classes: of the second one) or f1_macro (over classes that occur)."""
    f1_name = "f1" if classes == 2 else "f1_macro"
    if not np.isfinite(logits).all():
        return dict.fromkeys(("accuracy", f1_name, "matthews"), math.nan)
    predicted, target = torch.from_numpy(logits.argmax(-1)), torch.from_numpy(np.asarray(labels))
    f1 = (
        binary_f1_score(predicted, target)
        if classes == 2
        else multiclass_f1_score(predicted, target, num_classes=classes, average="macro")
    )
    return {
        "accuracy": float(multiclass_accuracy(predicted, target, num_classes=classes, average="micro")),
        f1_name: float(f1),
        "matthews": matthews(predicted, target, classes),
    }


def matthews(predicted: torch.Tensor, target: torch.Tensor, classes: int) -> float:
    if constant(predicted) or constant(target):
        return 0.0  # torchmetrics gives up to 1 here for two classes
    return float(multiclass_matthews_corrcoef(predicted, target, num_classes=classes))


def constant(values: torch.Tensor) -> bool:
    return bool((values == values[0]).all())


def regression_scores(predictions: Array, labels: Array) -> Scores:
    """pearson, spearman, mse; the correlations are nan where either side is constant."""
    predicted = torch.from_numpy(np.asarray(predictions, dtype=np.float64).reshape(-1))
    target = torch.from_numpy(np.asarray(labels, dtype=np.float64).reshape(-1))
    mse = float(((predicted - target) ** 2).mean())
    # torchmetrics calls spearman 0 for a constant and warns about pearson
    if not math.isfinite(mse) or constant(predicted) or constant(target):
        return {"pearson": math.nan, "spearman": math.nan, "mse": mse}
    return {
        "pearson": float(pearson_corrcoef(predicted, target)),
        "spearman": float(spearman_corrcoef(predicted, target)),
        "mse": mse,
    }


def span_scores(answers: Mapping[str, str], truth: SpanTruth) -> Scores:
    """SQuAD's exact_match and f1; where null is allowed also over rows with (hasans) and without an answer (noans)."""
    scores = squad_scores(answers, truth, range(len(truth.ids)))
    if not truth.null_allowed:
        return scores
    parts = {
        "hasans": [place for place, accepted in enumerate(truth.answers) if accepted],
        "noans": [place for place, accepted in enumerate(truth.answers) if not accepted],
    }
    for part, places in parts.items():
        if places:
            scores |= {f"{part}_{name}": value for name, value in squad_scores(answers, truth, places).items()}
    return scores


def squad_scores(answers: Mapping[str, str], truth: SpanTruth, places: Iterable[int]) -> Scores:
    chosen = list(places)
    predicted = [{"id": truth.ids[place], "prediction_text": answers[truth.ids[place]]} for place in chosen]
    # no accepted answer means that the empty text is right
    target = [{"id": truth.ids[place], "answers": {"text": list(truth.answers[place] or ("",))}} for place in chosen]
    return {name: float(value) / 100 for name, value in squad(predicted, target).items()}


def perplexity(mean_loss: float) -> float:
    """exp of the mean loss of a token in nats; inf where that is too large for a float."""
    return math.exp(mean_loss) if mean_loss < 700 or math.isnan(mean_loss) else math.inf
