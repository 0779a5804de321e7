"""Inputs to try a model with, made from its config alone: the same each time, without touching the global generator."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import ConfigError

TOKENS = 24


def sample_inputs(model: nn.Module) -> dict[str, Tensor]:
    """One row of whatever a transformers model takes, with a decoder's row where there is one.

    Raises ConfigError where the config does not say enough.
    """
    config = vars(model).get("config")
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
    if settings.get("is_encoder_decoder"):
        inputs["decoder_input_ids"] = torch.randint(settings["vocab_size"], (1, 4), generator=generator)
    return inputs
