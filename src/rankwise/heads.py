"""The tasks, transformers' class with the head of each, and which of them a config or a model is for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from rankwise.errors import ConfigError, nearest


@dataclass(frozen=True, eq=False)
class Head:
    """A head, or none, as transformers knows it."""

    model_class: Any
    """transformers' AutoModel class with the head."""
    models: Mapping[type[PretrainedConfig], Any]
    """The architectures that have it, each with its class, or a tuple of classes."""

    def classes(self, config: PretrainedConfig) -> tuple[type[PreTrainedModel], ...]:
        """The classes with this head for a config; none if its architecture has none."""
        found = self.models[type(config)] if type(config) in self.models else ()
        return found if isinstance(found, tuple) else (found,)

    def fits(self, config: PretrainedConfig) -> bool:
        """Whether its architecture has this head, in transformers or in the code that the model brings along."""
        return type(config) in self.models or self._own(config) is not None

    def saved(self, config: PretrainedConfig) -> bool:
        """Whether the config's checkpoint was saved with this head."""
        names = {cls.__name__ for cls in self.classes(config)} | {self._own(config)}
        return not names.isdisjoint(config.architectures or [])

    def _own(self, config: PretrainedConfig) -> str | None:
        """The class in the model's own code, whose config says "AutoModelForCausalLM": "file.ClassName"."""
        named = (vars(config).get("auto_map") or {}).get(self.model_class.__name__)
        return None if named is None else str(named).rpartition(".")[2]


_CLASSIFIER = Head(AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)

TASKS = {
    "classification": _CLASSIFIER,
    "regression": _CLASSIFIER,
    "span-qa": Head(AutoModelForQuestionAnswering, MODEL_FOR_QUESTION_ANSWERING_MAPPING),
    "causal-lm": Head(AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    "seq2seq": Head(AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
}
"""What `rankwise train` trains."""

BARE = Head(AutoModel, MODEL_MAPPING)
OTHERS = (
    Head(AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
    Head(AutoModelForImageClassification, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING),
    Head(AutoModelForSpeechSeq2Seq, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING),
    BARE,
)
"""What else somebody may have adapted."""


def task_named(name: str, config: PretrainedConfig) -> Head:
    """The task's head, if the model can have it. Raises ConfigError otherwise."""
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; known are {list(TASKS)}.{nearest(name, TASKS)}")
    if not TASKS[name].fits(config):
        able = [other for other, head in TASKS.items() if head.fits(config)]
        raise ConfigError(
            f"a {config.model_type} model has no head for task {name!r}; it has one for {able}. "
            "Choose one of those, or another model."
        )
    return TASKS[name]


def usual_task(config: PretrainedConfig) -> str | None:
    """What a model of this config is usually trained for: what its checkpoint is for, or classification."""
    task = next((task for task, head in TASKS.items() if head.saved(config)), "classification")
    return task if TASKS[task].fits(config) else None


def task_of(model: PreTrainedModel) -> str | None:
    """The task whose head the model has."""
    config: Any = model.config
    return next((task for task, head in TASKS.items() if isinstance(model, head.classes(config))), None)


def heads_of(config: PretrainedConfig) -> Iterable[Head]:
    """All that a model of this config can have, that of its checkpoint first."""
    heads = [head for head in dict.fromkeys([*TASKS.values(), *OTHERS]) if head.classes(config)]
    return sorted(heads, key=lambda head: not head.saved(config))


def read_config(name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a hub id or a folder. Raises ConfigError."""
    try:
        return AutoConfig.from_pretrained(str(name), revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"{str(name)!r} is no model: {reason} Give a hub id or a folder with a config.json."
        ) from error
