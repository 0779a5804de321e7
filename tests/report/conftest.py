"""Real runs of tiny models, trained once, and copies of them to spoil."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny

SORA = {"name": "sora", "rank": 3, "threshold": 0.02}
FREEZING = {"name": "freezing-adalora", "rank": 3, "target_rank": 2, "warmup": 1, "cooldown": 4, "every": 1}
FREEZING |= {"freeze_cooldown": 1, "freeze_every": 1}
PRUNED = {"name": "pruned-lora", "rank": 3, "target_rank": 2, **tiny.SHORT}
METHODS = {m["name"]: m for m in (tiny.ADALORA, tiny.AFLORA, tiny.LORA, SORA, FREEZING, PRUNED)}

Runs = Callable[[str], Path]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """trained("adalora") is the folder of a finished run. Not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    base = tiny.save_model("bert", root / "base")
    rows = tiny.write_rows(root / "rows.jsonl", tiny.topic_rows())

    def folder(name: str) -> Path:
        run = root / name
        if not run.exists():
            config = tiny.config(base, rows, run, method=METHODS[name], training={"evaluate_every": 4})
            assert tiny.train(root, config) == 0
        return run

    return folder


@pytest.fixture
def copied(trained: Runs, tmp_path: Path) -> Runs:
    """copied("adalora") is a copy that a test may spoil."""
    return lambda name: Path(shutil.copytree(trained(name), tmp_path / name))


@pytest.fixture
def comparison(trained: Runs, tmp_path: Path) -> Path:
    """A comparison's folder around two real runs, at two budgets each."""
    folder = tmp_path / "versus"
    cells, rows = [], []
    for method in ("lora", "adalora"):
        results = json.loads((trained(method) / "results.json").read_text())
        for budget in ("1k", "2k"):
            cell = f"topics/{method}/{budget}/lr0.01/seed0"
            shutil.copytree(trained(method), folder / "runs" / cell)
            told = {"method": method, "budget": budget, "learning_rate": 0.01, "seconds": results["seconds"]}
            told |= {"trainable_average": results["trainable_end"], "trainable_end": results["trainable_end"]}
            told |= {"peak_memory": results["peak_memory"]}
            score = results["scores"]["accuracy"]
            done = {"cell": cell, "purpose": "final", "task": "topics", "seed": 0, "metric": "accuracy"}
            cells.append(done | told | {"higher_is_better": True, "score": score, "folder": f"runs/{cell}"})
            interval = {"mean": score, "std": 0.1, "interval": [score - 0.1, score + 0.1], "seeds": 3}
            rows.append(
                told
                | interval
                | {"difference": 0.0, "p_value": None, "published": [{"value": 0.9, "source": "the paper, table 2"}]}
            )
    task = {"metric": "accuracy", "higher_is_better": True, "rows": rows}
    whole: dict[str, Any] = {"tasks": {"topics": task}, "baseline": "lora"}
    whole |= {"answer": ["Both reach the same accuracy."], "not_run": ["topics/aflora/1k"]}
    tiny.write_rows(folder / "runs.jsonl", cells)
    (folder / "comparison.json").write_text(json.dumps(whole))
    (folder / "spec.yaml").write_text("tasks: {topics: {train: rows.jsonl}}\nseeds: 3\n")
    shutil.copy(trained("lora") / "environment.json", folder)
    return folder
