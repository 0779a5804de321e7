"""What an exported folder says of its base model, in the config's words and in the model card's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.io.peft_format import card

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

# (transformers' table of classes with a head, PEFT's task type, the hub's name of the task, whether the head is new)
_TASKS = (
    ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "CAUSAL_LM", "text-generation", False),
    ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "SEQ_2_SEQ_LM", "text2text-generation", False),
    ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "SEQ_CLS", "text-classification", True),
    ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", "TOKEN_CLS", "token-classification", True),
    ("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES", "QUESTION_ANS", "question-answering", True),
    ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", None, "image-classification", True),
    ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", None, "automatic-speech-recognition", False),
)


@dataclass(frozen=True)
class Origin:
    """The base model of an export."""

    base_model: str | None  # an id on the hub, never a path of this machine
    model_class: str
    task_type: str | None
    pipeline_tag: str | None
    has_head: bool  # a task head, which does not come with the base model
    notes: tuple[str, ...] = ()


def origin_of(model: nn.Module, base_model: str | None) -> Origin:
    """`base_model` is the id that the user gives; else the name that the model was loaded by, if it is an id."""
    config = vars(model).get("config")
    name = base_model or (None if config is None else config._name_or_path) or None
    notes: tuple[str, ...] = ()
    if name is None or (base_model is None and not is_hub_id(name)):
        came = "its name is not known" if name is None else f"{name!r} is a folder of this machine"
        notes = (f"no base model is named, for {came}: give base_model='owner/name' before you publish it.",)
        name = None
    from transformers.models.auto import modeling_auto  # seconds to import, and `import rankwise` needs none of it

    cls = type(model).__name__
    for table, task_type, tag, has_head in _TASKS:
        names = vars(modeling_auto)[table].values()
        if any(cls in ((known,) if isinstance(known, str) else known) for known in names):
            return Origin(name, cls, task_type, tag, has_head, notes)
    return Origin(name, cls, None, None, False, notes)


def is_hub_id(name: str) -> bool:
    """Whether it is "owner/name" or "name" and no folder here; a hub's cache or a path is none."""
    return HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def text(origin: Origin, config: Mapping[str, Any], ranks: Mapping[str, int]) -> str:
    """The model card."""
    base = origin.base_model
    front = {
        "base_model": base,
        "library_name": "peft",
        "pipeline_tag": origin.pipeline_tag,
        "tags": [*([] if base is None else [f"base_model:adapter:{base}"]), "lora", "rankwise", "transformers"],
    }
    live = {path: rank for path, rank in ranks.items() if rank}
    of = f"`{base}`" if base else f"a {origin.model_class} whose id on the hub is not recorded here"
    lines = [
        f"# LoRA adapter for {of}\n",
        "Exported by rankwise. The scale is 1 everywhere: alpha is the rank, and what scaled the update in training is",
        f"folded into `lora_B`. {sum(live.values())} ranks live in {len(live)} of {len(ranks)} adapted layers; "
        f"`r` is {config['r']}.\n",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {origin.model_class}\n",
        f"model = {origin.model_class}.from_pretrained({(base or 'THE BASE MODEL')!r})",
        'model = PeftModel.from_pretrained(model, "THIS FOLDER")',
        "```\n",
    ]
    if base is None:
        lines.append("Before publishing: put `base_model: owner/name` into the lines at the top of this file, and the")
        lines.append("same id into `base_model_name_or_path` of `adapter_config.json`.\n")
    if config["modules_to_save"]:
        lines.append(
            f"`modules_to_save` holds {', '.join(config['modules_to_save'])}: for PEFT and transformers only.\n"
        )
    elif origin.has_head:
        lines.append("The task head is not in this folder: load a base model that has it.\n")
    return card(front, "\n".join(lines))
