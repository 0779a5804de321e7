"""The files of a checkpoint beside its adapter, checked before a run continues from them: anyone may have made them."""

import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from rankwise.errors import FolderError
from rankwise.io.description import fits
from rankwise.io.untrusted import brief, check_ordinary, read_text

LOSS_SUMS = "loss_sums.json"  # what the reported training loss and time are made from
MOST_STATE = 32 * 2**20  # bytes of trainer_state.json, which repeats every line of the log
PICKLED = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth")  # read with weights_only
STATE: dict[str, Any] = {
    "global_step": int,
    "max_steps": int,
    "epoch": float | None,
    "best_global_step": int | None,
    "best_model_checkpoint": str | None,
    "log_history": list,
    "stateful_callbacks": dict,
}
SUMS: dict[str, Any] = {
    "since_logged": list[float],
    "total": float,
    "last_logged": int,
    "seconds": float | None,
}  # None: of 0.1.0

BROKEN = (pickle.UnpicklingError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, RuntimeError)


def check_checkpoint(folder: Path) -> None:
    """Raise FolderError unless the folder holds a Trainer's state and rankwise's own, each value of its type."""
    if not folder.is_dir():
        raise FolderError(f"{folder} is no checkpoint: there is no such folder.")
    state = _read(folder / TRAINER_STATE_NAME, STATE)
    unknown = state.keys() - {f.name for f in fields(TrainerState)}
    if unknown:
        raise FolderError(f"{folder / TRAINER_STATE_NAME} holds {brief(sorted(unknown))}, which no Trainer knows.")
    read_loss_sums(folder)
    for pattern in PICKLED:
        for path in folder.glob(pattern):
            check_ordinary(path, folder)


def read_loss_sums(folder: Path) -> dict[str, Any]:
    return _read(folder / LOSS_SUMS, SUMS)


def _read(path: Path, types: dict[str, Any]) -> dict[str, Any]:
    if not os.path.lexists(path):
        raise FolderError(f"{path.parent} is no checkpoint that can be resumed: it has no {path.name}.")
    try:
        data = json.loads(read_text(path, MOST_STATE, path.parent))  # with NaN: a loss may have been that
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{path} is not JSON: {error}.") from error
    if not isinstance(data, dict):
        raise FolderError(f"{path} must hold one JSON object, not {brief(data)}.")
    for key, kind in types.items():
        value = data.get(key)
        if not (isinstance(value, kind) if kind in (list, dict) else fits(value, kind)):
            raise FolderError(f"{path}: {key} is {brief(value)}, which no Trainer writes there.")
    return data


@contextmanager
def readable(what: object) -> Iterator[None]:
    """What torch and transformers raise over a broken file is a FolderError that names the folder."""
    try:
        yield
    except FolderError:
        raise
    except BROKEN as error:
        raise FolderError(f"{what} cannot be resumed from: {brief(str(error))}.") from error
