"""Inputs to try a model with, made from its config alone: the same each time, without touching the global generator."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from rankwise.errors import ConfigError

TOKENS = 24


def sample_inputs(model: nn.Module) -> dict[str, Tensor]:
    """One row of whatever a transformers model takes, with a decoder's row where there is one. A classifier with a
    decoder shows it the text itself, and reads the answer where the text ends.

    Raises ConfigError where the config does not say enough.
    """
    config: Any = vars(model).get("config")
    settings: Mapping[str, Any] = {} if config is None else config.to_dict()
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Tensor] = {}
    if "num_mel_bins" in settings and "max_source_positions" in settings:
        shape = (1, settings["num_mel_bins"], 2 * settings["max_source_positions"])
        inputs["input_features"] = torch.randn(shape, generator=generator)
    elif "image_size" in settings and "vocab_size" not in settings:
        size = settings["image_size"]
        inputs["pixel_values"] = torch.randn(1, settings.get("num_channels", 3), size, size, generator=generator)
    elif "vocab_size" in settings:
        length = min(TOKENS, (settings.get("max_position_embeddings") or 2 * TOKENS) // 2)
        inputs["input_ids"] = torch.randint(settings["vocab_size"], (1, length), generator=generator)
    else:
        raise ConfigError(f"a {type(model).__name__} does not say what it reads; give the inputs to try it with.")
    if settings.get("is_encoder_decoder") and _classifies(model, config):
        inputs["input_ids"][0, -1] = _end(model, settings)
    elif settings.get("is_encoder_decoder"):
        inputs["decoder_input_ids"] = torch.randint(settings["vocab_size"], (1, 4), generator=generator)
    return inputs


def _classifies(model: nn.Module, config: Any) -> bool:
    models = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    return type(config) in models and isinstance(model, models[type(config)])


def _end(model: nn.Module, settings: Mapping[str, Any]) -> int:
    """The token that ends a text."""
    given = settings.get("eos_token_id")
    ends = given if isinstance(given, list) else [given]
    if not ends or not isinstance(ends[0], int):
        raise ConfigError(
            f"a {type(model).__name__} reads its answer where the text ends, and its config has eos_token_id={given}. "
            "Set it there to the token that its tokenizer ends a text with."
        )
    return ends[0]
