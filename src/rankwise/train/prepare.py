"""Turns rows into what the task's trainer takes."""

from collections.abc import Callable

import datasets
from transformers import PreTrainedTokenizerBase

from rankwise.errors import ConfigError, nearest
from rankwise.train.columns import Columns
from rankwise.train.data_config import DataConfig
from rankwise.train.prepare_causal import prepare_causal
from rankwise.train.prepare_seq2seq import prepare_seq2seq
from rankwise.train.prepare_spans import prepare_spans
from rankwise.train.prepare_text import prepare_classification, prepare_regression
from rankwise.train.prepared import Prepared, Source

PREPARERS: dict[str, Callable[[Source], Prepared]] = {
    "classification": prepare_classification,
    "regression": prepare_regression,
    "span-qa": prepare_spans,
    "causal-lm": prepare_causal,
    "seq2seq": prepare_seq2seq,
}


def prepare(
    task: str,
    rows: datasets.DatasetDict,
    columns: Columns,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
) -> Prepared:
    """Tokenize both splits for `task`, a name of heads.TASKS; causal rows stay text, in TRL's shapes.

    Raises DataError when the rows do not fit the task, ConfigError when the tokenizer does not.
    """
    if task not in PREPARERS:
        raise ConfigError(f"unknown task {task!r}; known are {list(PREPARERS)}.{nearest(task, PREPARERS)}")
    return PREPARERS[task](Source(rows=rows, columns=columns, tokenizer=tokenizer, config=config))
