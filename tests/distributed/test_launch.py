"""`accelerate launch` with the configs of examples/accelerate: whole runs of `rankwise train` in two processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny

CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate"
TRAINING = {"steps": 24, "log_every": 1, "save_every": 10, "keep_checkpoints": 3, "evaluate_every": "never"}
SPANS = {"warmup": 6, "cooldown": 10, "every": 3}
ADALORA = {"name": "adalora", "rank": 4, "target_rank": 2, **SPANS}
AFLORA = {"name": "aflora", "rank": 4, "scope": "all", **SPANS}


def launch(launcher: str, config: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `rankwise train` under a launcher config. torchrun, which is beneath, gets a free port."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / launcher)]
    command += ["--main_process_port", "0", "-m", "rankwise", "train", config, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=tiny.HANGS, check=False)


def without_dropout(folder: Path) -> Path:
    """A tiny BERT; dropout would draw other numbers in two processes than in one."""
    model = tiny.save_model("bert", folder)
    settings = json.loads((model / "config.json").read_text())
    zero = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.0)
    (model / "config.json").write_text(json.dumps(settings | zero))
    return model


def configured(folder: Path, name: str, batch_size: int, **changes: Any) -> str:
    training = TRAINING | {"batch_size": batch_size} | changes.pop("training", {})
    content = tiny.config(folder / "model", str(folder / "rows.jsonl"), folder / name, training=training, **changes)
    return tiny.write_config(folder / f"{name}.yaml", content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    without_dropout(tmp_path / "model")
    tiny.write_rows(tmp_path / "rows.jsonl", tiny.topic_rows())
    return tmp_path


def assert_same_decisions(one: Path, other: Path) -> None:
    keys = ("event", "step", "masks", "budget", "frozen", "share")
    first, second = ([{k: e.get(k) for k in keys} for e in tiny.lines(f / "history.jsonl")] for f in (one, other))
    assert first == second and len(first) > 3


def run_in_two(folder: Path, **changes: Any) -> Path:
    """The same run by one process, and by two with half the rows each; returns the latter's folder."""
    from rankwise.cli import main

    assert main(["train", configured(folder, "one", 8, **changes)]) == 0
    done = launch("ddp.yaml", configured(folder, "two", 4, **changes))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("run folder:") == 1  # the first process alone speaks
    assert_same_decisions(folder / "one", folder / "two")
    one, two = (load_file(folder / name / "adapter" / "adapter.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    losses = [
        [line["loss"] for line in tiny.lines(folder / n / "metrics.jsonl") if "loss" in line] for n in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    return folder / "two"


@pytest.mark.slow
def test_two_processes_train_as_one(folder: Path) -> None:
    run = run_in_two(folder, method=ADALORA)
    checkpoint = run / "checkpoints" / "checkpoint-20"
    assert {p.name for p in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert not [p for p in (run / "checkpoints").iterdir() if p.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("method", [ADALORA, AFLORA], ids=lambda method: method["name"])
def test_a_run_of_two_resumes_exactly(folder: Path, method: dict[str, Any]) -> None:
    config = configured(folder, "two", 4, method=method)
    assert launch("ddp.yaml", config).returncode == 0
    run = folder / "two"
    through = shutil.copytree(run, folder / "through")
    for gone in (run / "adapter", run / "checkpoints" / "checkpoint-24", run / "checkpoints" / "checkpoint-20"):
        shutil.rmtree(gone)
    (run / "results.json").unlink()
    done = launch("ddp.yaml", config, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("adapter/adapter.safetensors", "adapter/state.safetensors", "history.jsonl"):
        assert (run / name).read_bytes() == (through / name).read_bytes(), name
    results = [tiny.strict_json(f / "results.json") for f in (run, through)]
    assert results[0]["training_loss"] == results[1]["training_loss"]


@pytest.mark.slow
def test_fsdp_that_was_asked_for_and_not_given_is_an_error(folder: Path) -> None:
    done = launch("fsdp2.yaml", configured(folder, "sharded", 4, method=ADALORA))
    assert done.returncode != 0
    assert "asked for FSDP" in done.stderr and "ddp.yaml" in done.stderr


@pytest.mark.slow
def test_the_sharded_example(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command.append(str(CONFIGS.parent / "sharded.py"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=tiny.HANGS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("live ranks") == 1 and (tmp_path / "sharded-adapter" / "adapter.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_freezing_under_the_trainer(folder: Path, checkpointing: bool) -> None:
    training = {"gradient_checkpointing": checkpointing, "gradient_accumulation": 2}
    run_in_two(folder, method=AFLORA, training=training)
