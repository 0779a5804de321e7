"""A comparison on a real local Ray of two workers, one of which is killed in the middle of a run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import tiny
from rankwise.cli import main
from rankwise.compare.on_ray import OnRay
from rankwise.errors import ConfigError

SPEC = {
    "tasks": {"topics": {}},
    "methods": {"lora": {}, "adalora": {**tiny.SHORT}},
    "budgets": ["3k"],
    "seeds": 2,
    "search": {"learning_rates": [0.01]},
}


def write_spec(folder: Path, model: Path) -> str:
    rows = tiny.topic_rows(48)
    train = tiny.write_rows(folder / "train.jsonl", rows[:36])
    data = {"train": train, "validation": tiny.write_rows(folder / "held.jsonl", rows[36:]), "max_length": 48}
    training = {"steps": 60, "batch_size": 4, "log_every": 5, "save_every": 5, "evaluate_every": "never"}
    base = {"model": str(model), "data": data, "training": training}
    return tiny.write_config(folder / "spec.yaml", {**SPEC, "base": base, "output": str(folder / "out")})


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_run_goes_on(tmp_path: Path) -> None:
    model = tiny.save_model("bert", tmp_path / "model")
    here, there = tmp_path / "here", tmp_path / "ray"
    for folder in (here, there):
        folder.mkdir()
    assert main(["compare", write_spec(here, model)]) == 0

    out = there / "out"
    command = [sys.executable, "-W", "ignore", "-m", "rankwise", "compare", write_spec(there, model)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen([*command, "--executor", "ray", "--workers", "2"], env=environment)
    try:
        kill_a_worker(process, out)
        assert process.wait(timeout=400) == 0
    finally:
        process.kill()

    lines = tiny.lines(out / "runs.jsonl")
    assert len(lines) == len({line["cell"] for line in lines}) == 4 and not any("error" in line for line in lines)
    assert any(line["resumed"] for line in lines)
    scores = [{line["cell"]: line["scores"] for line in tiny.lines(of / "runs.jsonl")} for of in (here / "out", out)]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_a_run_takes_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines of 3 processors have no room for a run of 4, and room for two of 2."""
    import ray  # seconds, for this test alone
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=3)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with pytest.raises(ConfigError, match=r"no machine .* a run of 4 processors .*: they have 3 and 0, 3 and 0"):
            OnRay(None, 4, 0)
        ray.shutdown()
        executor = OnRay(None, 2, 0)
        assert executor.workers == 2
        executor.stop()
    finally:
        ray.shutdown()
        cluster.shutdown()


def kill_a_worker(comparison: "subprocess.Popen[bytes]", out: Path) -> None:
    """As soon as a run has a checkpoint."""
    victim = None
    while victim is None:
        assert comparison.poll() is None, "it ended before a worker could be killed"
        time.sleep(0.05)
        if any((out / "runs").rglob("checkpoint-*/trainer_state.json")):
            victim = next((p for p in psutil.process_iter() if is_worker_of(p, comparison.pid)), None)
    victim.kill()


def is_worker_of(process: psutil.Process, comparison: int) -> bool:
    """A process of Ray that is at work on a cell, started by that comparison."""
    try:
        at_work = any("ray::_work" in word for word in process.cmdline())
        return at_work and comparison in {parent.pid for parent in process.parents()}
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
