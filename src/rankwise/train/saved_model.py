"""The model that a saved adapter belongs to, loaded with the right head, and written again when it is plain."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rankwise.base_layers import is_packed, unpacked
from rankwise.errors import ConfigError, FolderError
from rankwise.io import folder as files
from rankwise.io.description import is_name
from rankwise.io.untrusted import brief
from rankwise.surgery import replace_modules
from rankwise.train import record
from rankwise.train.config import RunConfig
from rankwise.train.tasks import TASKS, usual_class

LONGEST_PROMPT = 256  # tokens


@dataclass(frozen=True)
class Source:
    """An adapter folder, and what is known of its base."""

    adapter: Path
    model: str  # hub id or folder
    revision: str | None = None
    trust_remote_code: bool = False
    task: str | None = None
    labels: list[str] | None = None


def find_source(what: Path, model: str | None, run: RunConfig | None) -> Source:
    """Of an adapter folder, or of a run whose configuration is `run`; `model` overrides what they say of the base."""
    if run is not None:
        results = record.read_results(what)
        task, labels = results.get("task"), results.get("labels")
        if task not in TASKS:
            raise FolderError(f"{what / record.RESULTS}: task is {brief(task)}, which is none of {list(TASKS)}.")
        if labels is not None and not (isinstance(labels, list) and all(is_name(label) for label in labels)):
            raise FolderError(f"{what / record.RESULTS}: labels are {brief(labels)}, not a list of names.")
        revision = run.revision if model is None else None
        return Source(what / record.ADAPTER, model or run.model, revision, run.trust_remote_code, task, labels)
    name = model or files.read(what).base_model["name"]
    if not name:
        raise ConfigError(f"{what} does not say which model it was made for. Give it with --model.")
    return Source(what, name)


def load_base(source: Source, dtype: torch.dtype | None) -> PreTrainedModel:
    """The base with the head that the adapter trained, in `dtype` or else in the checkpoint's own."""
    saved = files.read(source.adapter)
    settings: dict[str, Any] = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    config = _loaded(AutoConfig, source.model, settings)
    cls = usual_class(config) if source.task is None else TASKS[source.task].model_class
    head: dict[str, Any] = _head(source, config, cls, saved.tensors, saved.trained)
    model: PreTrainedModel = _loaded(cls, source.model, settings | head | {"dtype": dtype or "auto"})
    return model


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase | None:
    """The base's tokenizer; None for a model that has none, such as one of images."""
    settings = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.model, **settings)
        return tokenizer
    except (OSError, ValueError, KeyError):
        return None


def _head(
    source: Source, config: PretrainedConfig, cls: Any, tensors: dict[str, Tensor], trained: list[str]
) -> dict[str, Any]:
    """Settings of a head in which what the adapter trained fits: the number of its classes is in no file but that."""
    if cls is not TASKS["classification"].model_class or not trained:
        return {}
    names = {} if source.labels is None else dict(enumerate(source.labels))
    sizes = [len(names)] if names else [config.num_labels, *(tensors[n].shape[0] for n in trained if tensors[n].ndim)]
    for count in dict.fromkeys(sizes):
        tried = type(config).from_dict({**config.to_dict(), "id2label": {i: f"LABEL_{i}" for i in range(count)}})
        with torch.device("meta"):
            shapes = {n: p.shape for n, p in cls.from_config(tried).named_parameters()}
        if all(shapes.get(n) == tensors[n].shape for n in trained):
            told = {"id2label": names, "label2id": {n: i for i, n in names.items()}} if names else {}
            kind = {"problem_type": "regression"} if source.task == "regression" else {}
            return {"num_labels": count, **told, **kind}
    return {}


def _loaded(loader: Any, name: str, settings: dict[str, Any]) -> Any:
    try:
        return loader.from_pretrained(name, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"model={name!r} cannot be loaded: {reason} Give another one with --model.") from error


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
