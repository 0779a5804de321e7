"""The baselines through whole runs: train, evaluate again from the files, look inside."""

from pathlib import Path
from typing import Any

import pytest

import tiny
from rankwise.cli import main

CASES: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"name": "houlsby", "size": 4}),
    ("bert", {"name": "bitfit"}),
    ("bert", {"name": "prefix-layer", "prefix": 3}),
    ("llama", {"name": "prefix-embedding", "prefix": 3, "infix": 2}),
    ("llama", {"name": "top-blocks", "blocks": 1}),
    ("gpt2", {"name": "lin", "size": 4}),
    ("bart", {"name": "prefix-embedding", "prefix": 3}),
]


@pytest.mark.parametrize(("model", "method"), CASES, ids=lambda part: part if isinstance(part, str) else part["name"])
def test_a_run_trains_and_evaluates_from_its_files(
    model: str, method: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.save_model(model, tmp_path / "model")
    made = tiny.topic_rows() if model == "bert" else tiny.pair_rows()
    rows = tiny.write_rows(tmp_path / "rows.jsonl", made)
    output = tmp_path / "run"
    assert tiny.train(tmp_path, tiny.config(folder, rows, output, method=method)) == 0
    result = tiny.strict_json(output / "results.json")
    assert result["steps"] == 8
    assert result["trainable_start"] == result["trainable_end"] > 0
    assert main(["evaluate", str(output)]) == 0
    primary = result["scores"][result["primary"]]
    assert f"{primary:.4f}" in capsys.readouterr().out
    assert main(["inspect", str(output)]) == 0
    assert method["name"] in capsys.readouterr().out
