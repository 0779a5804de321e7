"""The base model that a saved adapter fits: which class with a head, and how many labels, told by names and shapes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PretrainedConfig,
    set_seed,
)

from rankwise.base_layers import kind_of, sizes
from rankwise.errors import ConfigError, FolderError
from rankwise.io.folder import DESCRIPTION, Saved, read
from rankwise.io.peft_format import PREFIX, PeftFolder
from rankwise.train import record

_MAPPINGS = (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    MODEL_MAPPING,
)


@dataclass(frozen=True)
class Needs:
    """What a model must have for an adapter to fit it."""

    layers: Mapping[str, list[int] | None]  # path -> [d_out, d_in], None for a fused layer of which blocks are known
    parameters: Mapping[str, list[int]]  # what trained in full, by name

    @classmethod
    def of_adapter(cls, saved: Saved) -> "Needs":
        layers = {n.partition("[")[0]: None if "[" in n else layer["shape"] for n, layer in saved.layers.items()}
        return cls(layers, {n: list(saved.tensors[n].shape) for n in saved.trained})

    @classmethod
    def of_peft(cls, folder: PeftFolder) -> "Needs":
        layers = {path: list(pair.shape) for path, pair in folder.pairs().items()}
        return cls(layers, {n.removeprefix(PREFIX): list(t.shape) for n, t in folder.others().items()})


def adapter_folder(name: str) -> Path:
    """The native adapter folder that `name` is, or that the run of that name holds."""
    for folder in (Path(name) / record.ADAPTER, Path(name)):
        if (folder / DESCRIPTION).is_file():
            return folder
    raise FolderError(f"{name} is neither a run nor an adapter of rankwise: it has no {DESCRIPTION}.")


def base_name(folder: Path, given: str | None) -> str:
    """The base model of a native adapter folder: the given one, else what it was saved with."""
    name = given or read(folder).base_model["name"]
    if not name:
        raise ConfigError(f"{folder} does not say which model it was made for; give it with --model.")
    return str(name)


def load(name: str, needs: Needs) -> nn.Module:
    """The model with its weights, in float32; what its checkpoint lacks is drawn from a fixed seed."""
    cls, config = _find(name, needs)
    set_seed(0)
    try:
        model: nn.Module = cls.from_pretrained(name, config=config, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise FolderError(f"the weights of {name!r} cannot be read: {str(error).strip().splitlines()[0]}") from error
    return model


def weightless(name: str, needs: Needs) -> nn.Module:
    """The model without weights, for its names and shapes: each is a single zero that takes every place, but for the
    parameters that `needs` lists."""
    cls, config = _find(name, needs)
    model = _on_meta(cls, config)
    new = {p: nn.Parameter(torch.zeros((), dtype=p.dtype).expand(p.shape)) for p in model.parameters()}
    new |= {p: nn.Parameter(torch.zeros(p.shape)) for n, p in model.named_parameters() if n in needs.parameters}
    for module in model.modules():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[own] = new[parameter]
    return model


def _find(name: str, needs: Needs) -> tuple[Any, PretrainedConfig]:
    """The class and the config of `name` in which all of `needs` is found. Raises FolderError with what is not."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FolderError(f"no model {name!r} can be read: {str(error).strip().splitlines()[0]}") from error
    fault = f"transformers has no model of the kind {config.model_type!r}"
    for cls in _classes(config):
        for labels in dict.fromkeys([config.num_labels, *(shape[0] for shape in needs.parameters.values())]):
            config.num_labels = labels
            fault = next(_faults(_on_meta(cls, config), needs), "")
            if not fault:
                return cls, config
    raise FolderError(f"the adapter was made for another model than {name!r}: {fault}. Name its base with --model.")


def _classes(config: PretrainedConfig) -> list[Any]:
    """The classes for a config, those that its checkpoint was saved from first."""
    found: Iterable[Any] = (m[type(config)] for m in _MAPPINGS if type(config) in m)
    classes = [cls for entry in found for cls in (entry if isinstance(entry, tuple) else (entry,))]
    return sorted(classes, key=lambda cls: cls.__name__ not in (config.architectures or []))


def _on_meta(cls: Any, config: PretrainedConfig) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = cls(config)
    return model


def _faults(model: nn.Module, needs: Needs) -> Iterator[str]:
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    for path, shape in needs.layers.items():
        if path not in modules or kind_of(modules[path]) is None:
            yield f"a {type(model).__name__} has no linear layer {path!r}"
        elif shape is not None and shape != list(reversed(sizes(modules[path]))):
            yield f"{path} is {list(reversed(sizes(modules[path])))} there, and {shape} here"
    for name, shape in needs.parameters.items():
        if name not in parameters:
            yield f"a {type(model).__name__} has no parameter {name!r}"
        elif list(parameters[name].shape) != shape:
            yield f"{name} is {list(parameters[name].shape)} there, and {shape} here"
