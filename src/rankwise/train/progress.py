"""One progress bar with the loss and where the decisions stand; and metrics.jsonl, which holds loss and clock."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankwise.adaptation import Adaptation
from rankwise.train.record import finite


class ProgressCallback(TrainerCallback):
    """Shows the run on a terminal, and is quiet anywhere else."""

    def __init__(self, adaptation: Adaptation, console: Console) -> None:
        self.adaptation, self.console = adaptation, console
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self.task: TaskID | None = None
        self.loss = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step)
        self.bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if self.task is not None:
            self.bar.update(self.task, completed=state.global_step, description=self._standing())

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **given: Any
    ) -> None:
        if logs and "loss" in logs:
            self.loss = f"loss {float(logs['loss']):.3f}"

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back, also after a run that ended in an error. Safe to call twice."""
        self.bar.stop()

    def _standing(self) -> str:
        controller = self.adaptation.controller
        summary = {} if controller is None else controller.summary()
        parts = [f"{name} {value:.0%}" if name == "frozen" else f"{name} {value:g}" for name, value in summary.items()]
        return " · ".join([self.loss, *parts] if self.loss else parts)


class MetricsFile(TrainerCallback):
    """Appends what the Trainer logs to metrics.jsonl, with the step and the seconds since the run began."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.began = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Cut the file back to the checkpoint that the run continues from."""
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.exists() else []
        # the last line may have been cut short by the crash, and is later than any checkpoint
        kept = [line for line in lines[:-1] if json.loads(line)["step"] <= state.global_step]
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **given: Any
    ) -> None:
        line = {"step": state.global_step, "seconds": round(time.monotonic() - self.began, 3), **(logs or {})}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(line), default=float) + "\n")
