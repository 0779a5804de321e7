"""Weights & Biases and trackio themselves, on this machine alone: what their files hold after a run.

Only where they can be imported: `make test-trackers`.
"""

import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import rankwise as rw
import tiny


def run(tracker: str, folder: Path) -> dict[str, Any]:
    """The results of a run that reports to one tracker, in a process of its own. Its files are below the folder."""
    if find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed: make test-trackers")
    base = tiny.save_model("bert", folder / "base")
    rows = tiny.write_rows(folder / "rows.jsonl", tiny.topic_rows())
    config = tiny.config(base, rows, Path("runs/topics"), training={"report_to": [tracker]})
    tiny.write_config(folder / "run.yaml", config)
    given = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(folder / "trackio")}
    done = subprocess.run(
        [sys.executable, "-m", "rankwise", "train", "run.yaml"],
        cwd=folder,
        env=os.environ | given | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads((folder / "runs" / "topics" / "results.json").read_text())
    return results


def test_trackio(tmp_path: Path) -> None:
    """One run, the last scores included, with ranks and budget at every logging step."""
    results = run("trackio", tmp_path)
    with sqlite3.connect(tmp_path / "trackio" / "huggingface.db") as data:
        found = data.execute("select run_name, metrics from metrics order by id").fetchall()
    data.close()
    assert {name for name, _ in found} == {"runs/topics"}
    logged = [json.loads(metrics) for _, metrics in found]
    ranks = [values["train/rankwise/live_ranks"] for values in logged if "train/rankwise/live_ranks" in values]
    final = rw.load(_model(tmp_path), tmp_path / "runs" / "topics" / "adapter").ranks()
    assert ranks[0] > ranks[-1] == sum(final.values()) and len(ranks) == 4
    last = [values for values in logged if "train/rankwise/live_ranks" in values][-1]
    assert last["train/rankwise/budget"] == sum(final.values()) and last["train/rankwise/frozen_share"] == 0
    assert {n: last[f"train/rankwise/rank/{n}"] for n in final} == final
    assert logged[-1]["eval/loss"] == pytest.approx(results["scores"]["loss"])


def test_wandb_offline(tmp_path: Path) -> None:
    """Its file is a log of messages that hold names and numbers as text."""
    run("wandb", tmp_path)
    [file] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    text = file.read_bytes()
    final = rw.load(_model(tmp_path), tmp_path / "runs" / "topics" / "adapter").ranks()
    for name in ("live_ranks", "budget", "frozen_share", *(f"rank/{layer}" for layer in final)):
        assert text.count(f"train/rankwise/{name}".encode()) >= 4, name
    assert b"runs/topics" in text


def _model(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=2)
