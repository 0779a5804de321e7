"""What preparing gives to a trainer and to the evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from rankwise.errors import ConfigError
from rankwise.train.columns import Columns
from rankwise.train.data_config import DataConfig
from rankwise.train.labels import Baseline, LabelSet
from rankwise.train.span_answers import SpanTruth

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything that the preparation of a task reads."""

    rows: datasets.DatasetDict
    columns: Columns
    tokenizer: PreTrainedTokenizerBase
    config: DataConfig

    def values(self, split: str, role: str) -> list[Any]:
        """All values of a role. Raises DataError when no column plays it."""
        return list(self.rows[split][self.columns.column(role)])


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Rows ready for the task's trainer."""

    task: str
    train: datasets.Dataset
    validation: datasets.Dataset
    collator: Collator | None
    """None for causal-lm: SFTTrainer brings its own."""
    truncated: dict[str, int]
    """Rows of each split that max_length (or max_target_length) cut; for span-qa rows that need several windows."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows of each split of whose completion max_length leaves nothing to learn or to score."""
    labels: LabelSet | None = None
    baseline: Baseline | None = None
    """None where only the untouched model can be compared with."""
    spans: SpanTruth | None = None
    """The validation examples and windows of span-qa, for post-processing."""
    completion_only: bool = False
    """SFTConfig.completion_only_loss: the prompt is not trained on."""


def require_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            "the tokenizer has no padding token, and batches need one. Set tokenizer.pad_token = tokenizer.eos_token "
            "and model.config.pad_token_id = tokenizer.pad_token_id before preparing the data."
        )


def too_long(encoded: Sequence[Sequence[int]], full: Callable[[int], int], limit: int) -> list[bool]:
    """Which sequences were cut: only one that is exactly `limit` long can have been, so only those are encoded in
    full. `full(i)` is the uncut length of the i-th."""
    return [len(ids) >= limit and full(place) > limit for place, ids in enumerate(encoded)]
