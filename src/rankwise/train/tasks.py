"""The tasks: which model each needs, and which one fits the columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

from rankwise.errors import ConfigError, nearest
from rankwise.train.columns import Columns


@dataclass(frozen=True, kw_only=True)
class Task:
    """A row of TASKS."""

    model_class: Any
    """transformers' AutoModel class with the task's head."""
    models: Mapping[type[PretrainedConfig], Any]
    """The architectures that have that head."""


TASKS = {
    "classification": Task(
        model_class=AutoModelForSequenceClassification, models=MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    ),
    "regression": Task(
        model_class=AutoModelForSequenceClassification, models=MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    ),
    "span-qa": Task(model_class=AutoModelForQuestionAnswering, models=MODEL_FOR_QUESTION_ANSWERING_MAPPING),
    "causal-lm": Task(model_class=AutoModelForCausalLM, models=MODEL_FOR_CAUSAL_LM_MAPPING),
    "seq2seq": Task(model_class=AutoModelForSeq2SeqLM, models=MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
}


HEADS = {
    "CausalLM": "causal-lm",
    "LMHead": "causal-lm",
    "ConditionalGeneration": "seq2seq",
    "QuestionAnswering": "span-qa",
}


def usual_class(model_config: PretrainedConfig) -> Any:
    """The AutoModel class with the head that the checkpoint was saved with, or else one to classify with."""
    classes = " ".join(model_config.architectures or [])
    task = TASKS[next((t for word, t in HEADS.items() if word in classes), "classification")]
    return task.model_class if type(model_config) in task.models else AutoModel


# RoBERTa's positions begin behind its padding token's id
COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet")


def task_named(name: str, model_config: PretrainedConfig) -> Task:
    """The task, if the model can have its head. Raises ConfigError otherwise."""
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; known are {list(TASKS)}.{nearest(name, TASKS)}")
    if type(model_config) not in TASKS[name].models:
        able = [other for other, task in TASKS.items() if type(model_config) in task.models]
        raise ConfigError(
            f"a {model_config.model_type} model has no head for task {name!r}; it has one for {able}. "
            "Choose one of those, or another model."
        )
    return TASKS[name]


def check_length(max_length: int, model_config: PretrainedConfig) -> None:
    """Raises ConfigError when the model has fewer positions than `max_length`."""
    settings = model_config.to_dict()
    # T5 keeps an n_positions that it does not use
    positions = settings.get("max_position_embeddings") or (
        None if model_config.is_encoder_decoder else settings.get("n_positions")
    )
    if positions is None:
        return
    if model_config.model_type in COUNT_FROM_PADDING:
        positions -= settings["pad_token_id"] + 1
    if max_length > positions:
        raise ConfigError(
            f"max_length={max_length} exceeds the {positions} positions of this {model_config.model_type}. "
            f"Set data.max_length to at most {positions}."
        )


def guess_task(columns: Columns, rows: datasets.Dataset, model_config: PretrainedConfig) -> tuple[str, str]:
    """(task, reason), to be printed as "task: classification, because <reason>"."""
    if columns.answers is not None:
        return "span-qa", f"the data has {columns.context!r}, {columns.question!r} and {columns.answers!r}"
    if columns.label is not None:
        return labelled_task(columns.label, rows)
    if columns.prompt is not None and model_config.is_encoder_decoder:
        pair = f"the data has {columns.prompt!r} and {columns.completion!r}"
        return "seq2seq", f"{pair}, and {model_config.model_type} is an encoder-decoder"
    return "causal-lm", causal_reason(columns)


def labelled_task(label: str, rows: datasets.Dataset) -> tuple[str, str]:
    dtype = rows.data.schema.field(label).type
    if pa.types.is_floating(dtype):
        return "regression", f"column {label!r} holds fractions"
    kind = "whole numbers" if pa.types.is_integer(dtype) else "words"
    return "classification", f"column {label!r} holds {kind}"


def causal_reason(columns: Columns) -> str:
    names = " and ".join(repr(column) for column in columns.used().values())
    return f"the data has {names}, and no label"
