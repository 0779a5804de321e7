"""What a tracker is given: read back from TensorBoard's own event files."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainingArguments

import rankwise as rw
import tiny
from rankwise.cli import main
from rankwise.train import trackers
from rankwise.train.trackers import report_ranks

Scalars = dict[str, dict[int, float]]


def read(folder: Path) -> Scalars:
    """{tag: {step: value}} of all event files below the folder."""
    found = EventAccumulator(str(next(folder.rglob("events.out.tfevents.*")).parent))
    found.Reload()
    return {tag: {e.step: e.value for e in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


@pytest.mark.parametrize("method", [tiny.ADALORA, tiny.AFLORA], ids=lambda m: m["name"])
def test_a_run_reports_ranks_budget_and_frozen_share(method: dict[str, object], tmp_path: Path):
    base = tiny.save_model("bert", tmp_path / "base")
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.topic_rows())
    config = tiny.config(base, rows, tmp_path / "run", training={"report_to": ["tensorboard"]}, method=method)
    assert tiny.train(tmp_path, config) == 0
    scalars = read(tmp_path / "run" / "tensorboard")
    history = tiny.lines(tmp_path / "run" / "history.jsonl")
    metrics = tiny.lines(tmp_path / "run" / "metrics.jsonl")
    losses = {line["step"]: line["loss"] for line in metrics if "loss" in line}
    assert scalars["train/loss"] == pytest.approx(losses)
    assert set(scalars["train/rankwise/live_ranks"]) == set(losses) == {2, 4, 6, 8}
    layers = history[0]["ranks"]
    assert {tag for tag in scalars if "/rank/" in tag} == {f"train/rankwise/rank/{name}" for name in layers}
    final = rw.load(_model(base), tmp_path / "run" / "adapter")
    assert {n: scalars[f"train/rankwise/rank/{n}"][8] for n in layers} == final.ranks()
    assert scalars["train/rankwise/live_ranks"][8] == sum(final.ranks().values())
    if method is tiny.ADALORA:
        assert scalars["train/rankwise/budget"][8] == 2 * len(layers) < scalars["train/rankwise/budget"][2]
        assert set(scalars["train/rankwise/frozen_share"].values()) == {0.0}
    else:
        assert "train/rankwise/budget" not in scalars
        parts = [
            name.rpartition(".")[2] for a in final.adapters.values() for name, _ in a.named_parameters(recurse=False)
        ]
        assert scalars["train/rankwise/frozen_share"][8] == pytest.approx(len(final.frozen()) / len(parts))
        assert scalars["train/rankwise/frozen_share"][8] > scalars["train/rankwise/frozen_share"][2] == 0
    events = sorted((tmp_path / "run").rglob("events.out.tfevents.*"))
    config_file = tmp_path / "run" / "config.yaml"  # trackers of the machine that trained, perhaps not of this one
    config_file.write_text(config_file.read_text().replace("- tensorboard", "- tensorboard\n  - wandb\n  - trackio"))
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert sorted((tmp_path / "run").rglob("events.out.tfevents.*")) == events
    kept = (tmp_path / "run" / "metrics.jsonl").read_text()
    kept += json.dumps(json.loads(next((tmp_path / "run").rglob("trainer_state.json")).read_text()))
    assert "rankwise/" not in kept  # a value for each layer would swamp them


def _model(base: Path) -> torch.nn.Module:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)


def test_a_stock_trainer_reports_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    tokenizer = tiny.word_tokenizer()
    words = torch.randint(3, 60, (16, 6)).tolist()
    adaptation = rw.adapt(tiny.llama(len(tokenizer)), rw.LoRA(rank=3))
    trainer = Trainer(
        model=adaptation.model,
        args=TrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=2,
            logging_steps=1,
            report_to=["tensorboard"],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            save_strategy="no",
        ),
        train_dataset=datasets.Dataset.from_dict({"input_ids": words, "labels": words}),
        callbacks=[rw.AdaptationCallback(adaptation)],
    )
    report_ranks(trainer, adaptation)
    trainer.train()
    assert read(tmp_path / "events")["train/rankwise/live_ranks"] == {1: 42.0, 2: 42.0}


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.topic_rows())
    config = tiny.config("nowhere", rows, tmp_path / "run", training={"report_to": ["wandb"]})
    assert tiny.train(tmp_path, config) == 2
    assert "report_to names wandb, which is not installed: `pip install wandb`." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    config["training"]["report_to"] = ["tensorbord"]
    assert tiny.train(tmp_path, config) == 2
    assert "tensorbord" in capsys.readouterr().err
