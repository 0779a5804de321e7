"""PEFT's own config objects in place of a method: `adapt(model, LoraConfig(...))` adapts what PEFT would have adapted.

peft is not imported: whoever has such an object has it loaded.
"""

import re
import sys
from dataclasses import asdict
from enum import Enum
from typing import Any

from torch import nn

from rankwise.adapter import Installed, Method
from rankwise.base_layers import is_from, kind_of
from rankwise.errors import ConfigError, TargetError
from rankwise.io.peft_config import described, method_from
from rankwise.io.plain_names import with_ties
from rankwise.methods.installing import parameters_under
from rankwise.targets import ModelView, trained_modules

CONFIGS = ("AdaLoraConfig", "LoraConfig", "VeraConfig")  # the first is a subclass of the second
HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def install(model: nn.Module, config: Method | Any) -> tuple[Method, Installed]:
    """The method, or the one that the config describes, put into the model. The first note says what each of a config's
    fields became.

    Raises ConfigError for what is no method and no such config, and for a field that cannot be honoured.
    """
    if isinstance(config, Method):
        return config, config.install(model)
    name = _name_of(config)
    fields = {key: _plain(value) for key, value in asdict(config).items()}
    view = ModelView(model)
    heads = _heads(view, fields)
    layers = _targeted(view, fields, heads)
    method = method_from(fields, layers, heads, trains=True)
    trained = trained_modules(view, heads)
    _check_ties(model, trained, fields)
    installed = method.install_saved(model, layers, trained)
    told = f"{described(name, fields, method)}; {len(layers)} layers; trained in full: {heads or 'none'}"
    installed.notes = [told, *installed.notes]
    return method, installed


def _name_of(config: object) -> str:
    """The name that PEFT has for its kind of config."""
    if not is_from("peft", config):
        raise ConfigError(
            f"{config!r:.80} is no method. Take one of rankwise's, such as rankwise.LoRA(rank=8), or a config of "
            "PEFT's."
        )
    name = next((name for name in CONFIGS if is_from("peft", config, name)), None)
    if name is None:
        raise ConfigError(f"a {type(config).__name__} cannot be taken over; of PEFT's configs {list(CONFIGS)} can.")
    return name


def _plain(value: Any) -> Any:
    """As the config's file would have it."""
    if isinstance(value, set | tuple):
        return sorted(value) if isinstance(value, set) else list(value)
    return value.value if isinstance(value, Enum) else value


def _heads(view: ModelView, fields: dict[str, Any]) -> list[str]:
    """Names of the modules that PEFT would train in full: all that end in those named, or in the task's usual ones,
    be it in the middle of a word. What is named and is no module's end stays, to be refused with its name."""
    known = [n for n in view.names.values() if n]
    wanted = list(fields["modules_to_save"] or [])
    ends = (*wanted, *HEADS.get(fields["task_type"], ()))
    found = [n for n in known if n.endswith(ends)]
    return [*found, *(word for word in wanted if not any(n.endswith(word) for n in known))]


def _check_ties(model: nn.Module, modules: list[str], fields: dict[str, Any]) -> None:
    """Raise TargetError where PEFT would train a copy of a tied parameter, apart from what it is tied to."""
    trained = [*parameters_under(model, modules)]
    others = [n for n in with_ties(model, trained) if not any(n == m or n.startswith(m + ".") for m in modules)]
    if others and not fields.get("ensure_weight_tying"):
        raise TargetError(
            f"modules_to_save={fields['modules_to_save']!r}: the model ties one of them to {others[0]}, and PEFT would "
            "part them. Set ensure_weight_tying=True to train both as one, as here, or load the model with "
            "tie_word_embeddings=False."
        )


def _targeted(view: ModelView, fields: dict[str, Any], heads: list[str]) -> list[str]:
    """Names of the layers that PEFT would adapt. Raises TargetError if there is none, or one that cannot be adapted."""
    targets = fields["target_modules"]
    if targets is None:
        targets = _usual_targets(view, fields["peft_type"])
    if isinstance(targets, str) and targets.lower() == "all-linear":
        targets = _all_linear(view, fields["task_type"])
    names = [n for n in view.names.values() if n and _is_meant(n, targets, fields)]
    names = [n for n in names if not any(n == head or n.startswith(head + ".") for head in heads)]
    if not names:
        raise TargetError(
            f"target_modules={fields['target_modules']!r} matches no layer of the model, as PEFT matches."
        )
    for name in names:
        module = view.model.get_submodule(name)
        if kind_of(module) is None:
            raise TargetError(
                f"target_modules={fields['target_modules']!r} means {name} too, a {type(module).__name__}; rankwise "
                "adapts linear layers only. Name those."
            )
    return names


def _usual_targets(view: ModelView, peft_type: str) -> Any:
    known = vars(sys.modules["peft"].utils)[f"TRANSFORMERS_MODELS_TO_{peft_type}_TARGET_MODULES_MAPPING"]
    if view.model_type not in known:
        raise ConfigError(f"target_modules is not set, and PEFT knows no usual ones for {view.model_type!r}. Set it.")
    return known[view.model_type]


def _all_linear(view: ModelView, task_type: str | None) -> list[str]:
    """Every linear layer but the output layer, or where there is none, the classifier's of a task that has one."""
    left_out = view.names.get(id(view.lm_head))
    if view.lm_head is None and task_type == "SEQ_CLS":
        left_out = next((n for n, _ in view.model.named_children() if n in ("score", "classifier")), None)
    linears = [
        n for n, m in view.model.named_modules() if isinstance(m, nn.Linear) or is_from("transformers", m, "Conv1D")
    ]
    return [n for n in linears if n != left_out]


def _is_meant(name: str, targets: str | list[str], fields: dict[str, Any]) -> bool:
    excluded = fields.get("exclude_modules")
    if excluded and (re.fullmatch(excluded, name) if isinstance(excluded, str) else _is_one_of(name, excluded)):
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    if name in targets:
        return True
    indices = fields.get("layers_to_transform")
    if not _is_one_of(name, targets) or indices is None or indices == []:
        return _is_one_of(name, targets)
    return _index(name, fields.get("layers_pattern")) in ([indices] if isinstance(indices, int) else indices)


def _index(name: str, pattern: str | list[str] | None) -> int | None:
    """The number of the block that the layer is in: behind one of the words, or the first that stands in its name."""
    words = [pattern] if isinstance(pattern, str) else pattern
    forms = [rf"(?:^|.*?\.){word}\.(\d+)\." for word in words] if words else [r".*?\.[^.]*\.(\d+)\."]
    return next((int(match[1]) for form in forms if (match := re.match(form, name))), None)


def _is_one_of(name: str, endings: list[str]) -> bool:
    return any(_ends_in(name, ending) for ending in endings)


def _ends_in(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)
