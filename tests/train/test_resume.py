"""A run that is killed at any step and resumed ends bit for bit where the uninterrupted run ends.

The runs are real processes and the kill is SIGKILL. They are forked from one server that has imported everything, so a
kill and a resume take seconds.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from rankwise.cli import main

STEPS = 36
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rankwise.cli.train", "rankwise.train.run"])

# AdaLoRA's budget falls from step 7 to 18 and AFLoRA freezes from step 4 to 18: kills fall before, into and behind them
BUDGET = {"name": "adalora", "rank": 4, "target_rank": 2, "warmup": 6, "cooldown": 18, "every": 2}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"method": {"name": "lora", "rank": 3, "dropout": 0.1}},
    "lin": {"method": {"name": "lin", "size": 4}},
    "adapter-drop-random": {"method": {"name": "adapter-drop", "size": 4, "drop": 1, "random": True}},
    "prefix-layer": {"method": {"name": "prefix-layer", "prefix": 4}},
    "full": {"method": {"name": "full"}},
    "lora-by-length": {"method": {"name": "lora", "rank": 3}, "training": {"group_by_length": True}},
    "lora-accumulated": {"method": {"name": "lora", "rank": 3}, "training": {"gradient_accumulation": 4}},
    "adalora": {"method": BUDGET},
    "adalora-accumulated": {"method": BUDGET, "training": {"gradient_accumulation": 4}},
    "adalora-compacted": {"method": {**BUDGET, "compact_at_end_of_budget": True}},
    "aflora": {"method": {"name": "aflora", "rank": 4, "scope": "all", "warmup": 3, "cooldown": 18, "every": 3}},
    "aflora-accumulated": {
        "method": {"name": "aflora", "rank": 4, "scope": "all", "warmup": 3, "cooldown": 18, "every": 3},
        "training": {"gradient_accumulation": 4},
    },
}


def command(arguments: list[str], log: str) -> None:
    torch.set_num_threads(1)
    with Path(log).open("a", encoding="utf-8") as file:
        sys.stdout = sys.stderr = file
        sys.exit(main(arguments))


def start(config: str, output: Path, *options: str) -> Any:
    arguments = ["train", config, "--output", str(output), *options]
    process = PROCESSES.Process(target=command, args=(arguments, f"{output}.log"))
    process.start()
    return process


def finish(process: Any, output: Path) -> None:
    process.join()
    assert process.exitcode == 0, Path(f"{output}.log").read_text(encoding="utf-8")


def reached(output: Path) -> int:
    """The last step that metrics.jsonl tells of, 0 before there is one."""
    path = output / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return int(whole[-1].partition('"step":')[2].partition(",")[0]) if whole else 0


def kill_at(process: Any, output: Path, step: int) -> None:
    while process.is_alive() and reached(output) < step:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def without_clock(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not name.endswith(("seconds", "runtime", "per_second"))}


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("adapter/adapter.safetensors", "adapter/rankwise.json", "history.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    states = [folder / "adapter" / "state.safetensors" for folder in (one, other)]
    assert states[0].exists() == states[1].exists()
    assert not states[0].exists() or states[0].read_bytes() == states[1].read_bytes()
    last = f"checkpoints/checkpoint-{STEPS}"
    for name in ("optimizer.pt", "scheduler.pt"):
        first, second = (torch.load(folder / last / name, weights_only=True) for folder in (one, other))
        assert_equal(first, second)
    results = [tiny.strict_json(folder / "results.json") for folder in (one, other)]
    for name in ("scores", "training_loss", "steps", "trainable_start", "trainable_end"):
        assert results[0][name] == results[1][name], name
    first, second = ([without_clock(line) for line in tiny.lines(folder / "metrics.jsonl")] for folder in (one, other))
    assert first == second


def assert_equal(one: Any, other: Any) -> None:
    """Equal through all levels of dicts and lists, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


def interrupted(case: str, folder: Path, steps: list[int]) -> None:
    """Run a case through, and once more for each step with a kill there; all must end alike."""
    model = tiny.save_model("bert", folder / "model")
    rows = tiny.write_rows(folder / "rows.jsonl", tiny.topic_rows())
    training = {"steps": STEPS, "batch_size": 2, "log_every": 1, "save_every": 5, "evaluate_every": "never"}
    changes = {**CASES[case], "training": training | CASES[case].get("training", {})}
    config = tiny.write_config(folder / "run.yaml", tiny.config(model, rows, folder / "unused", **changes))
    whole = folder / "whole"
    finish(start(config, whole), whole)
    for step in steps:
        output = folder / f"killed-{step}"
        kill_at(start(config, output), output, step)
        finish(start(config, output, "--resume"), output)
        assert_same_run(whole, output)


@pytest.mark.parametrize(
    ("case", "steps"),
    [("lora", [3, 17]), ("adalora-compacted", [12, 24]), ("aflora", [9, 23])],
)
def test_a_killed_run_resumes_exactly(case: str, steps: list[int], tmp_path: Path) -> None:
    interrupted(case, tmp_path, steps)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_random_steps_resumes_exactly(case: str, tmp_path: Path) -> None:
    interrupted(case, tmp_path, sorted(random.Random(case).sample(range(1, STEPS), 12)))


@pytest.mark.slow
def test_a_run_killed_twice_resumes_exactly(tmp_path: Path) -> None:
    model = tiny.save_model("bert", tmp_path / "model")
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.topic_rows())
    training = {"steps": STEPS, "batch_size": 2, "log_every": 1, "save_every": 5, "evaluate_every": "never"}
    content = tiny.config(model, rows, tmp_path / "unused", method=BUDGET, training=training)
    config = tiny.write_config(tmp_path / "run.yaml", content)
    whole, output = tmp_path / "whole", tmp_path / "killed"
    finish(start(config, whole), whole)
    kill_at(start(config, output), output, 8)
    kill_at(start(config, output, "--resume"), output, 21)
    finish(start(config, output, "--resume"), output)
    assert_same_run(whole, output)


def test_resume_refuses_another_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.save_model("bert", tmp_path / "model")
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.topic_rows())
    output = tmp_path / "run"
    training = {"steps": 4000, "log_every": 1, "save_every": 1000, "evaluate_every": "never"}
    content = tiny.config(model, rows, output, method=tiny.LORA, training=training)
    config = tiny.write_config(tmp_path / "run.yaml", content)
    kill_at(start(config, output), output, 2)
    assert main(["train", config, "--resume", "--training.learning_rate", "0.5"]) == 2
    said = capsys.readouterr().err
    assert "learning_rate" in said
    assert "config.yaml" in said
