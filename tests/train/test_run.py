"""A run as a function: what is checked first, and what is left when it ends in an error."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerCallback

import rankwise as rw
import tiny
from rankwise.train import record, run
from rankwise.train.config import RunConfig, TrainingConfig
from rankwise.train.data_config import DataConfig


def config(folder: Path, **changes: Any) -> RunConfig:
    made: dict[str, Any] = {
        "model": str(folder / "model"),
        "method": rw.AdaLoRA(rank=3, target_rank=2, warmup=1, cooldown=2, every=1),
        "data": DataConfig(train=str(folder / "rows.jsonl"), validation=str(folder / "rows.jsonl"), max_length=48),
        "output": str(folder / "run"),
        "training": TrainingConfig(steps=6, batch_size=4, log_every=1),
    }
    return RunConfig(**(made | changes))


def test_the_output_is_looked_at_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / record.CONFIG).write_text("model: x\n")
    with pytest.raises(rw.FolderError, match="holds a run already"):
        run.train(config(tmp_path), Console(quiet=True))


class Fails(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 3:
            raise RuntimeError("the lights went out")


def test_an_error_gives_the_terminal_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress bar is stopped, what was logged is there, and results.json is not."""
    tiny.save_model("bert", tmp_path / "model")
    tiny.write_rows(tmp_path / "rows.jsonl", tiny.topic_rows(8))
    build = run.build_trainer

    def build_failing(*given: Any) -> Any:
        trainer = build(*given)
        trainer.add_callback(Fails())
        return trainer

    monkeypatch.setattr(run, "build_trainer", build_failing)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True)
    with pytest.raises(RuntimeError, match="lights went out"):
        run.train(config(tmp_path), console)
    hide, show = "\x1b[?25l", "\x1b[?25h"
    shown = screen.getvalue()
    assert "training" in shown and shown.count(hide) == shown.count(show) >= 1
    assert [line["step"] for line in tiny.lines(tmp_path / "run" / record.METRICS) if "loss" in line] == [1, 2]
    assert not (tmp_path / "run" / record.RESULTS).exists()


def test_what_json_has_not_becomes_null() -> None:
    data = {"a": math.nan, "b": [math.inf, 1.5, "x"], "c": ({"d": -math.inf},), "e": None, "f": 3}
    assert record.finite(data) == {"a": None, "b": [None, 1.5, "x"], "c": [{"d": None}], "e": None, "f": 3}
