"""Where the decisions stand, for the trackers that a Trainer reports to: TensorBoard, Weights & Biases, trackio.

rankwise/live_ranks       of all layers together
rankwise/rank/<layer>     of one
rankwise/budget           what the schedule allows, for a method that has one
rankwise/frozen_share     of the projections that trained
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, get_reporting_integration_callbacks

from rankwise.adaptation import Adaptation
from rankwise.errors import ConfigError

PREFIX = "rankwise/"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def check_installed(trackers: Sequence[str]) -> None:
    """Raise ConfigError for a tracker whose package is missing."""
    for name in trackers:
        if find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"training.report_to names {name}, which is not installed: `pip install {PACKAGES[name]}`."
            )


def scalars(adaptation: Adaptation) -> dict[str, float]:
    """One value for each name above. Waits for the device once."""
    names, layers = list(adaptation.adapters), list(adaptation.adapters.values())
    ranks = torch.stack([layer.live.sum().cpu() for layer in layers]).tolist() if layers else []
    projections = len(adaptation.parameters()) - len(adaptation.trained)
    values: dict[str, float] = {f"{PREFIX}live_ranks": sum(ranks)}
    if adaptation.controller is not None and "budget" in adaptation.controller.summary():
        values[f"{PREFIX}budget"] = adaptation.controller.summary()["budget"]
    values[f"{PREFIX}frozen_share"] = len(adaptation.frozen()) / max(1, projections)
    return values | {f"{PREFIX}rank/{name}": rank for name, rank in zip(names, ranks, strict=True)}


def report_ranks(trainer: Trainer, adaptation: Adaptation) -> None:
    """Let the trackers of `trainer`, if it has any, see the scalars at its logging steps: they, and nobody else.

    A Trainer keeps what it logs in every checkpoint, and prints it; a value for each layer would swamp both.
    """
    kinds = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
    callbacks = trainer.callback_handler.callbacks
    places = [place for place, callback in enumerate(callbacks) if kinds and isinstance(callback, kinds)]
    if places:
        callbacks.insert(places[-1] + 1, _Without())
        callbacks.insert(places[0], _With(adaptation))


def write_tensorboard_to(trainer: Trainer, folder: Path) -> None:
    """Where TensorBoard's files go, unless TENSORBOARD_LOGGING_DIR says."""
    if "TENSORBOARD_LOGGING_DIR" not in os.environ:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):
                callback.logging_dir = str(folder)


class _With(TrainerCallback):
    def __init__(self, adaptation: Adaptation) -> None:
        self.adaptation = adaptation

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **given: Any
    ) -> None:
        if logs is not None and "loss" in logs:
            logs.update(scalars(self.adaptation))


class _Without(TrainerCallback):
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **given: Any
    ) -> None:
        for name in [name for name in logs or () if name.startswith(PREFIX)]:
            del logs[name]
