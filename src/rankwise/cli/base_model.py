"""The base model that a saved adapter fits: where it comes from, which head it has, and how many labels.

A run says all of it. Of an adapter alone, or a folder of another tool, names and shapes tell it.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rankwise.base_layers import kind_of, sizes
from rankwise.cli.config_file import config_of_run
from rankwise.errors import ConfigError, FolderError
from rankwise.heads import TASKS, Head, heads_of, read_config
from rankwise.io import peft_import
from rankwise.io.description import is_name
from rankwise.io.folder import DESCRIPTION, Saved, read
from rankwise.io.hub import located
from rankwise.io.peft_format import CONFIG, PREFIX, PeftFolder
from rankwise.io.sources import is_peft
from rankwise.io.untrusted import brief
from rankwise.train import record


@dataclass(frozen=True)
class Base:
    """A model, and what is known of its head."""

    name: str  # hub id or folder
    revision: str | None = None
    trust_remote_code: bool = False
    task: str | None = None
    labels: Sequence[str] | None = None

    @property
    def source(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


@dataclass(frozen=True)
class Needs:
    """What a model must have for an adapter to fit it."""

    layers: Mapping[str, list[int] | None]  # path -> [d_out, d_in], None for a fused layer of which blocks are known
    parameters: Mapping[str, list[int]]  # what trained in full, by name

    @classmethod
    def of_folder(cls, adapter: Path) -> "Needs":
        """Of a native folder, or one of PEFT's, of which names are enough."""
        if not is_peft(adapter):
            return cls.of_adapter(read(adapter))
        found = peft_import.outline(adapter)
        return cls(dict.fromkeys(found.layers), {n: list(tensor.shape) for n, tensor in found.trained.items()})

    @classmethod
    def of_adapter(cls, saved: Saved) -> "Needs":
        layers = {n.partition("[")[0]: None if "[" in n else layer["shape"] for n, layer in saved.layers.items()}
        return cls(layers, {n: list(saved.tensors[n].shape) for n in saved.trained})

    @classmethod
    def of_peft(cls, folder: PeftFolder) -> "Needs":
        layers = {path: list(pair.shape) for path, pair in folder.pairs().items()}
        return cls(layers, {n.removeprefix(PREFIX): list(t.shape) for n, t in folder.others().items()})


def adapter_and_base(what: str, model: str | None, *, trusts: bool) -> tuple[Path, Base]:
    """Of a run, an adapter folder, PEFT's too, or an adapter's hub id; `model` overrides what they say of the base.

    Raises FolderError if it is none of them, ConfigError if it does not say which model it was made for, or asks for
    code to be run that the user does not trust.
    """
    folder = located(what)
    if (folder / record.CONFIG).is_file():
        return folder / record.ADAPTER, _of_run(folder, model, trusts)
    adapter = record.adapter_in(folder)
    if adapter is None:
        raise FolderError(
            f"{what} is neither a run nor an adapter: it has no {DESCRIPTION} and no {CONFIG}. Give the `output` of a "
            "run, an adapter folder, or an adapter's hub id (owner/name)."
        )
    name, revision = (model, None) if model else _said_of_base(adapter)
    if not name:
        raise ConfigError(f"{what} does not say which model it was made for. Give it with --model.")
    return adapter, Base(name, revision, trust_remote_code=trusts)


def _said_of_base(adapter: Path) -> tuple[str | None, str | None]:
    """Name and revision; a native folder says none."""
    if not is_peft(adapter):
        return read(adapter).base_model["name"], None
    told = peft_import.outline(adapter)
    return told.base, told.revision


def _of_run(folder: Path, model: str | None, trusts: bool) -> Base:
    saved = record.read_run(folder)
    config, path = config_of_run(folder, saved["config"], trusts=trusts), folder / record.RESULTS
    task, labels = saved["results"].get("task"), saved["results"].get("labels")
    if task not in TASKS:
        raise FolderError(f"{path}: task is {brief(task)}, which is none of {list(TASKS)}.")
    if labels is not None and not (isinstance(labels, list) and labels and all(is_name(label) for label in labels)):
        raise FolderError(f"{path}: labels are {brief(labels)}, not a list of names.")
    revision = config.revision if model in (None, config.model) else None
    return Base(model or config.model, revision, config.trust_remote_code, task, labels)


def load(base: Base, needs: Needs, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model with its weights, in `dtype` or else its own; what its checkpoint lacks is drawn from a fixed seed."""
    head, config = _find(base, needs)
    set_seed(0)
    try:
        model: PreTrainedModel = head.model_class.from_pretrained(
            base.name, config=config, dtype=dtype or "auto", **base.source
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FolderError(f"the weights of {base.name!r} cannot be read: {reason}") from error
    return model


def weightless(base: Base, needs: Needs) -> nn.Module:
    """The model without weights, for its names and shapes: each is a single zero that takes every place, but for the
    parameters that `needs` lists."""
    model = _on_meta(base, *_find(base, needs))
    new = {p: nn.Parameter(torch.zeros((), dtype=p.dtype).expand(p.shape)) for p in model.parameters()}
    new |= {p: nn.Parameter(torch.zeros(p.shape)) for n, p in model.named_parameters() if n in needs.parameters}
    for module in model.modules():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[own] = new[parameter]
    return model


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer; None for one that has none, such as one of images."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base.name, **base.source)
        return tokenizer
    except (OSError, ValueError, KeyError):
        return None


def _find(base: Base, needs: Needs) -> tuple[Head, PretrainedConfig]:
    """The head and the config with which the model has all of `needs`.

    Raises FolderError with the first fault of the model that has fewest.
    """
    config = read_config(base.name, **base.source)
    tries: list[list[str]] = []
    for head in heads_of(config) if base.task is None else (TASKS[base.task],):
        for tried in _configs(config, base, needs):
            faults = list(_faults(_on_meta(base, head, tried), needs))
            if not faults:
                return head, tried
            tries.append(faults)
    fault = min(tries, key=len)[0] if tries else f"transformers has no model of the kind {config.model_type!r}"
    raise FolderError(
        f"the adapter was made for another model than {base.name!r}: {fault}. Name its base with --model."
    )


def _configs(config: PretrainedConfig, base: Base, needs: Needs) -> Iterator[PretrainedConfig]:
    """The config with each number of labels that is possible; that of a head is in no file but the adapter's."""
    if base.labels is not None:
        counts = [len(base.labels)]
    elif base.task == "regression":
        counts = [1]
    else:
        counts = [config.num_labels, *(shape[0] for shape in needs.parameters.values() if shape)]
    for count in dict.fromkeys(counts):
        tried = copy.deepcopy(config)
        tried.num_labels = count
        if base.labels is not None:
            tried.id2label = dict(enumerate(base.labels))
            tried.label2id = {name: label for label, name in tried.id2label.items()}
        if base.task == "regression":
            tried.problem_type = "regression"
        yield tried


def _on_meta(base: Base, head: Head, config: PretrainedConfig) -> nn.Module:
    settings = {"trust_remote_code": base.trust_remote_code, "dtype": torch.float32}
    try:
        with torch.device("meta"):
            model: nn.Module = head.model_class.from_config(config, **settings)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FolderError(f"no model can be made as {base.name!r} says: {reason}") from error
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
