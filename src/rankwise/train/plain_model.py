"""A model with its adapter merged: texts to compare it on, and the plain form that is written."""

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rankwise.base_layers import is_packed, unpacked
from rankwise.surgery import replace_modules

LONGEST_PROMPT = 256  # tokens


def samples(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, prompts: list[str]) -> list[dict[str, Tensor]]:
    """Each prompt as the model takes it, alone: no padding is needed. A decoder is given the prompt too."""
    made = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=LONGEST_PROMPT)
        sample = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        if model.config.is_encoder_decoder:
            sample["decoder_input_ids"] = sample["input_ids"]
        made.append(sample)
    return made


def as_plain(model: PreTrainedModel) -> PreTrainedModel:
    """The merged model, to be written: itself; or of a quantised one a successor in which nothing is quantised, neither
    the layers that no adapter had nor what transformers remembers of how it was loaded."""
    config = model.config.to_dict()
    if config.pop("quantization_config", None) is None:
        return model
    packed = {module: unpacked(module) for module in model.modules() if is_packed(module)}
    replace_modules(model, {old: new.to(model.dtype) for old, new in packed.items()})
    with torch.device("meta"):
        plain: PreTrainedModel = type(model)(type(model.config).from_dict(config))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
