"""rankwise plan: a model or a config file, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import tiny
from rankwise.cli import main

Model = Callable[[str], Path]


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_a_model(model: Model, capsys: pytest.CaptureFixture[str]):
    size = ("--data.max_length", "16", "--training.batch_size", "2")
    text = told(capsys, str(model("bert")), "--method", "lora", "--method.rank", "3", *size, "--device_memory", "1GB")
    for line in (
        "lora on a BertForSequenceClassification",
        "of rank 3",
        "batch 2 × 16 tokens",
        "The run fits into 1 GB",
    ):
        assert line in text
    assert "█" not in text  # nothing changes while LoRA trains


def test_a_config_file_s_rows_give_steps_task_and_labels(
    model: Model, topics: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    training = {"epochs": 4, "batch_size": 8}
    config = {"model": str(model("bert")), "method": {**tiny.ADALORA, "warmup": "1 epoch"}, "training": training}
    config |= {"data": {"train": topics, "max_length": 16}, "output": str(tmp_path / "run")}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    text = told(capsys, str(file))
    assert "task classification" in text and "step 0" in text
    rows = [json.loads(line) for line in Path(topics).read_text(encoding="utf-8").splitlines()]
    assert len({row["label"] for row in rows}) == 2
    assert main(["train", str(file)]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert f"{results['trainable_start']:,}" in text  # the head's outputs are the labels
    assert not (tmp_path / "run2").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--method", "adalora", "--training.steps", "10", "--method.warmup", "9"], "leave no step of total_steps=10"),
        (["--method", "lora", "--method.rank", "999"], "rank=999 is above the largest possible rank"),
        (["--method", "lora", "--data.max_length", "4096"], "max_length=4096 exceeds"),
        (["--method", "lora", "--device_memory", "much"], "no amount of memory"),
        (["--method", "lora", "--device-memory", "1GB"], "Did you mean '--device_memory'"),
        (["--method", "loro"], "Did you mean 'lora'"),
        ([], "method is missing"),
    ],
)
def test_what_cannot_be_planned(model: Model, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(model("bert")), "--data.max_length", "16", *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "no/such/model", "--method", "lora"]) == 2
    assert "is no model" in capsys.readouterr().err


def test_help_is_complete(capsys: pytest.CaptureFixture[str]):
    text = told(capsys, "--help")
    for option in ("--device_memory", "--training.batch_size", "--method.target_rank"):
        assert option in text
