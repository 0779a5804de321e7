"""Which task fits the columns, and which length a model."""

import datasets
import pyarrow as pa
from transformers import PretrainedConfig

from rankwise.errors import ConfigError
from rankwise.train.columns import Columns

# RoBERTa's positions begin behind its padding token's id
COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet")


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
