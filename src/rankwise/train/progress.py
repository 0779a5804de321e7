"""One progress bar with the loss and where the decisions stand; and metrics.jsonl, which holds loss and clock."""

import json
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankwise.adaptation import Adaptation
from rankwise.errors import FolderError
from rankwise.io.atomic import replaced_file
from rankwise.io.description import fits
from rankwise.io.untrusted import brief, check_ordinary, parse_json
from rankwise.train.record import finite

MOST_LINE = 2**20  # bytes of one line of metrics.jsonl


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
        with replaced_file(self.path) as file:
            file.writelines(self._lines_until(state.global_step))

    def _lines_until(self, step: int) -> Iterator[str]:
        if not self.path.exists():
            return
        check_ordinary(self.path, self.path.parent)
        with self.path.open("rb") as lines:
            for number in count(1):
                line = lines.readline(MOST_LINE)
                if not line.endswith(b"\n") and len(line) < MOST_LINE:
                    return  # cut short by the crash, and later than any checkpoint
                where = f"{self.path}, line {number}"
                text = line.decode("utf-8", errors="replace")
                logged = parse_json(text, where) if line.endswith(b"\n") else None
                if not isinstance(logged, dict) or not fits(logged.get("step"), int):
                    raise FolderError(f"{where}: {brief(logged)} is not what rankwise logs. Remove the file to go on.")
                if logged["step"] <= step:
                    yield text

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **given: Any
    ) -> None:
        line = {"step": state.global_step, "seconds": round(time.monotonic() - self.began, 3), **(logs or {})}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(line), default=float) + "\n")
