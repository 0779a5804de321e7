"""Checkpoints on their way to the hub while training goes on: the adapter, and more only if `hub_strategy` says so."""

import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress, hf_api

from rankwise.io.atomic import replaced_folder
from rankwise.train.checkpoint import LOSS_SUMS, PICKLED

OUTGOING = "_hub"  # in the output folder; a Trainer never uploads what begins with an underscore
STATE = (*PICKLED, TRAINER_STATE_NAME, LOSS_SUMS)


def push_checkpoint(trainer: Any, checkpoint: Path) -> None:
    """Upload the adapter and the tokenizer of a finished checkpoint, in the background; with the strategies
    "checkpoint" and "all_checkpoints" the whole checkpoint too, in a folder of its own.

    Trainer's own copies weights, which there are none of, and its pickled arguments, a token among them.
    """
    args, busy = trainer.args, trainer.push_in_progress
    if not trainer.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
        return
    if busy is not None and not busy.is_done() and not args.hub_always_push:
        return
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    outgoing = Path(args.output_dir) / OUTGOING
    with replaced_folder(outgoing) as staging:  # a checkpoint may be removed before its upload has ended
        for file in checkpoint.iterdir():
            if file.is_file() and not any(fnmatch(file.name, pattern) for pattern in STATE):
                _link(file, staging / file.name)
    message = f"Training in progress, step {trainer.state.global_step}"
    jobs = [_upload(trainer, outgoing, message)]
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        place = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
        jobs.append(_upload(trainer, checkpoint, f"{message}, checkpoint", path_in_repo=place))
    if busy is None or busy.is_done():
        trainer.push_in_progress = PushInProgress(jobs)
    else:
        busy.jobs.extend(jobs)


def _upload(trainer: Any, folder: Path, message: str, **where: str) -> Any:
    return hf_api().upload_folder(
        repo_id=trainer.hub_model_id,
        folder_path=str(folder),
        commit_message=message,
        token=trainer.args.hub_token,
        run_as_future=True,
        revision=trainer.args.hub_revision,
        **where,
    )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
