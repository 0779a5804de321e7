"""Which task fits the columns, and which length a model."""

import datasets
import pyarrow as pa
from transformers import PretrainedConfig

from rankwise.errors import ConfigError
from rankwise.train.columns import Columns
from rankwise.train.config import RunConfig

# RoBERTa's positions begin behind its padding token's id
COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet")


def positions_of(model_config: PretrainedConfig) -> int | None:
    """How many tokens in a row the model can take, None where nothing limits them."""
    settings = model_config.to_dict()
    # T5 keeps an n_positions that it does not use
    positions: int | None = settings.get("max_position_embeddings") or (
        None if model_config.is_encoder_decoder else settings.get("n_positions")
    )
    if positions is not None and model_config.model_type in COUNT_FROM_PADDING:
        positions -= settings["pad_token_id"] + 1
    return positions


def check_length(length: int, model_config: PretrainedConfig, setting: str = "data.max_length") -> None:
    """Raises ConfigError when the model has fewer positions than `length`, which is that of the setting."""
    positions = positions_of(model_config)
    if positions is not None and length > positions:
        _, _, name = setting.partition(".")
        raise ConfigError(
            f"{name}={length} exceeds the {positions} positions of this {model_config.model_type}. "
            f"Set {setting} to at most {positions}."
        )


def check_lengths(config: RunConfig, task: str, model_config: PretrainedConfig) -> None:
    """Raises ConfigError when a model has fewer positions than it would read or, in seq2seq, write."""
    check_length(config.data.max_length, model_config)
    if task == "seq2seq":
        check_length(config.data.max_target_length, model_config, "data.max_target_length")
        check_length(config.generation.max_new_tokens, model_config, "generation.max_new_tokens")


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
