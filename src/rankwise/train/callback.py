"""The way into any transformers Trainer: attaches the adaptation when training begins, saves it, lets it go."""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length

from rankwise.adaptation import Adaptation
from rankwise.errors import FolderError
from rankwise.io import folder as files

ADAPTER_FOLDER = "adapter"  # inside a checkpoint of a stock Trainer, beside its whole-model files
_ELSEWHERE = (
    "To continue from a folder outside output_dir, name it in TrainingArguments(resume_from_checkpoint=...) as well."
)


class AdaptationCallback(TrainerCallback):
    """`Trainer(..., callbacks=[AdaptationCallback(adaptation)])`: the total number of steps comes from the Trainer.

    `history` is the JSON-lines file for the events; by default `history.jsonl` in the Trainer's output folder.
    """

    def __init__(self, adaptation: Adaptation, history: str | Path | None = None) -> None:
        self.adaptation = adaptation
        self.history = history
        self.saves = True  # the mixin, whose checkpoints are adapter folders themselves, turns this off
        self._attached = ExitStack()
        self._quantized = bool(vars(adaptation.model).get("is_quantized"))
        if self._quantized:
            # transformers refuses to train a quantised model without an adapter on it, and knows none but PEFT's; it
            # asks once, while the Trainer is made
            adaptation.model.is_quantized = False  # type: ignore[assignment]

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if self._quantized:
            self.adaptation.model.is_quantized = True  # type: ignore[assignment]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self.detach()  # a run that ended in an error left its hooks
        if self.saves and state.global_step > 0:
            self._restore(args, state)
        history = self.history or Path(args.output_dir) / "history.jsonl"
        attached = self.adaptation.attached(
            given["optimizer"],
            state.max_steps,
            steps_per_epoch=_steps_per_epoch(given["train_dataloader"], args.gradient_accumulation_steps),
            history=history,
            compiled=args.torch_compile,
        )
        self._attached.enter_context(attached)

    def _restore(self, args: TrainingArguments, state: TrainerState) -> None:
        checkpoints = [Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"]
        if args.resume_from_checkpoint is not None:
            checkpoints.insert(0, Path(args.resume_from_checkpoint))
        folders = [checkpoint / ADAPTER_FOLDER for checkpoint in checkpoints]
        there = [folder for folder in folders if folder.is_dir()]
        if not there:
            raise FolderError(
                f"training resumes at step {state.global_step}, but {folders[0]} is not there: the adaptive state of "
                f"that checkpoint was not saved. Was the callback part of the run that wrote it? {_ELSEWHERE}"
            )
        # Trainer does not tell its callbacks from where it resumes, but has loaded the model's weights by now
        read = next((folder for folder in there if self._holds(folder)), None)
        if read is None:
            raise FolderError(
                f"training resumes at step {state.global_step} with other weights than {there[0]} has: the checkpoint "
                f"is another run's. {_ELSEWHERE}"
            )
        self.adaptation.restore(read)

    def _holds(self, folder: Path) -> bool:
        """Whether the model's tensors are, bit for bit, those of an adapter folder, in the model's types."""
        saved, adaptation = files.read(folder).tensors, self.adaptation
        own = files.whole(files.collect({**adaptation.adapters, **adaptation.parts}, adaptation.trained))
        return own.keys() == saved.keys() and all(
            torch.equal(tensor.cpu(), saved[name].to(tensor.dtype)) for name, tensor in own.items()
        )

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.flush()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.flush()
        if self.saves:
            checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self.adaptation.save(checkpoint / ADAPTER_FOLDER)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.detach()

    def flush(self) -> None:
        self.adaptation.history.flush()

    def detach(self) -> None:
        """Leave the optimizer. Safe to call twice."""
        self._attached.close()


def _steps_per_epoch(batches: Any, accumulation: int) -> int | None:
    """None where the rows are a stream, whose end nobody knows."""
    return max(1, math.ceil(len(batches) / accumulation)) if has_length(batches) else None
