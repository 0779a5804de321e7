"""A model without weights, from a config, a hub id, a folder or a model; and a batch and a loss for it."""

import copy
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from rankwise.errors import ConfigError
from rankwise.heads import BARE, read_config, task_named, task_of, usual_task

Source: TypeAlias = "PretrainedConfig | nn.Module | str | Path"
Batch = dict[str, Tensor]


def model_of(source: Source, task: str | None, dtype: torch.dtype | None) -> tuple[nn.Module, str | None]:
    """A model on the meta device, in training mode, and its task; a model that was given has the task of its class."""
    if isinstance(source, nn.Module):
        twin = _twin(source)
        known = task_of(twin) if isinstance(twin, PreTrainedModel) else None
        return twin.to(dtype).train(), task or known
    config = copy.deepcopy(source) if isinstance(source, PretrainedConfig) else read_config(source)
    task = task or usual_task(config)
    settings: dict[str, Any] = {"trust_remote_code": False} | ({} if dtype is None else {"dtype": dtype})
    head = BARE if task is None else task_named(task, config)
    if not head.classes(config):
        raise ConfigError(
            f"a {config.model_type} model is none of transformers' own, and planning does not run the code that comes "
            "with one. Make the model yourself and give it to rankwise.plan."
        )
    with torch.device("meta"):
        model: nn.Module = head.model_class.from_config(config, **settings)
    return model.train(), task


def _twin(model: nn.Module) -> nn.Module:
    """The model again, with tensors that have no values."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        memo[id(tensor)].__dict__.update(tensor.__dict__)  # transformers' mark of what was loaded
    return copy.deepcopy(model, memo)


def recompute_activations(model: nn.Module) -> None:
    """Turn gradient checkpointing on, as `rankwise train` does. Raises ConfigError for a model that has none."""
    model_that_recomputes(model).activation_checkpointing_enable({"use_reentrant": False})


def model_that_recomputes(model: nn.Module) -> PreTrainedModel:
    """The model. Raises ConfigError unless it has gradient checkpointing."""
    if not isinstance(model, PreTrainedModel) or not model.supports_gradient_checkpointing:
        raise ConfigError(f"a {type(model).__name__} has no gradient checkpointing; leave gradient_checkpointing off.")
    return model


def loss_of(model: nn.Module, task: str | None, rows: int, length: int) -> Callable[[], Tensor] | None:
    """The loss on a batch of `rows` texts of `length` tokens, as a Trainer computes it; None for a model that does not
    read text. The batch is made when the loss is."""
    if not isinstance(model, PreTrainedModel) or model.main_input_name != "input_ids":
        return None
    config: Any = model.config
    config.use_cache = False  # as Trainer sets it
    if task in ("classification", "regression"):  # else some models look at the labels' values to find out
        config.problem_type = "regression" if config.num_labels == 1 else "single_label_classification"
    if config.pad_token_id is None:
        config.pad_token_id = 0

    def loss() -> Tensor:
        ids = torch.zeros(rows, length, dtype=torch.long)
        labels = _labels(task, config, ids)
        mask = torch.ones_like(ids)
        mask[0, -1] = 0  # of a batch without any padding, some models let the mask go
        output = model(input_ids=ids, attention_mask=mask, **labels)
        value: Tensor = output.loss if labels else output[0].sum()
        return value

    return loss


def _labels(task: str | None, config: Any, ids: Tensor) -> Batch:
    rows = ids.shape[0]
    match task:
        case None:
            return {}
        case "span-qa":
            return {name: torch.zeros(rows, dtype=torch.long) for name in ("start_positions", "end_positions")}
        case "causal-lm" | "seq2seq":
            return {"labels": ids.clone()}
        case _:
            return {"labels": torch.zeros(rows, dtype=torch.long if config.num_labels > 1 else torch.float32)}
