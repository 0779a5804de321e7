"""Whole runs whose generated text is scored by `generation.score`, and the runs that it does not fit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import tiny
from rankwise.cli import main
from rankwise.train import evaluation
from rankwise.train.config import GenerationConfig
from rankwise.train.nlg_scores import nlg_scores
from rankwise.train.scorers import SCORERS

Model = Callable[[str], Path]

BREAKFAST, RAIN, WHISTLES = "before breakfast.", "while it rains.", "and whistles."
TOLD = {
    "Alimentum": (BREAKFAST, RAIN, WHISTLES),
    "Blue Spice": (RAIN,),
    "Café Adriatic": (BREAKFAST, WHISTLES),
    "The Vaults": (BREAKFAST, RAIN),
    "Zizzi": (WHISTLES,),
}
PUBS = list(TOLD)
ROWS = [
    {"prompt": f"name: {name}", "completion": f" counts the crab pots {how}"}
    for name, each in TOLD.items()
    for how in each
]
LEARNS = {"method": {"name": "full"}, "training": {"steps": 40, "save_every": 40}}


def test_the_table_holds_what_the_setting_takes() -> None:
    assert SCORERS.keys() == set(get_args(get_type_hints(GenerationConfig)["score"]))


def test_rows_with_one_prompt_are_references_of_one_text(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four of the five prompts are answered, once each, and scored against all rows that share them."""
    calls: list[tuple[list[str], list[str]]] = []
    generate = evaluation.generate

    def noted(job: Any, trainer: Any, prompts: list[str]) -> list[str]:
        calls.append((prompts, generate(job, trainer, prompts)))
        return calls[-1][1]

    monkeypatch.setattr(evaluation, "generate", noted)
    mixed = [*ROWS[1:], ROWS[0]]  # rows of one prompt need not stand together
    path, run = tiny.write_rows(tmp_path / "rows.jsonl", mixed), tmp_path / "run"
    settings = {"generation": {"rows": 4, "max_new_tokens": 12, "score": "nlg"}}
    assert tiny.train(tmp_path, tiny.config(model("llama"), path, run, **settings, **LEARNS)) == 0

    scored = [call for call in calls if len(call[0]) > 3]  # three are shown as samples
    assert len(scored) == 2  # of the untouched model, and of the trained one
    results = tiny.strict_json(run / "results.json")
    for (prompts, texts), scores in zip(scored, (results["before"], results["scores"]), strict=True):
        assert prompts == [f"name: {name}" for name in PUBS[:4]]
        told = [sorted(r["completion"].strip() for r in ROWS if r["prompt"] == prompt) for prompt in prompts]
        expected = nlg_scores([text.strip() for text in texts], told)
        assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert results["primary"] == "perplexity" and results["scores"]["rougeL"] > 0.5
    assert results["scores"]["cider"] > 0
    assert [sample["prompt"] for sample in results["samples"]] == [f"name: {name}" for name in PUBS[:3]]
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0


def sums(count: int = 12) -> tiny.Rows:
    return [{"prompt": f"{i} and {i} make", "completion": f" twice {i}\n#### 7"} for i in range(count)]


def test_a_final_number_decides_a_seq2seq_run(model: Model, tmp_path: Path) -> None:
    path, run = tiny.write_rows(tmp_path / "rows.jsonl", sums()), tmp_path / "run"
    settings = {"generation": {"max_new_tokens": 12, "score": "number"}}
    assert tiny.train(tmp_path, tiny.config(model("t5"), path, run, **settings)) == 0
    results = tiny.strict_json(run / "results.json")
    assert results["primary"] == "accuracy" and 0 <= results["scores"]["accuracy"] <= 1
    assert "rougeL" not in results["scores"]


def test_rows_with_one_prompt_in_a_seq2seq_run(model: Model, tmp_path: Path) -> None:
    path, run = tiny.write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "run"
    settings = {"generation": {"max_new_tokens": 12, "score": "nlg"}}
    assert tiny.train(tmp_path, tiny.config(model("bart"), path, run, **settings)) == 0
    results = tiny.strict_json(run / "results.json")
    assert results["primary"] == "bleu" and {"nist", "meteor", "rougeL", "cider"} <= results["scores"].keys()


def test_a_seq2seq_run_is_scored_against_whole_rows(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts and completions are cut for the model only: no answer holds its number, and the prompts begin alike."""
    seen: list[list[list[str]]] = []
    scorer = replace(SCORERS["nlg"], scores=lambda _, references: seen.append(list(references)) or {"bleu": 0.0})
    monkeypatch.setitem(SCORERS, "nlg", scorer)
    rows = [{"prompt": f"{'and so on ' * 20}{i}", "completion": f"{'it is ' * 9}#### {i}"} for i in (5, 6, 6)]
    path, run = tiny.write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    settings = {"generation": {"max_new_tokens": 4, "score": "nlg"}, "data": {"max_length": 8, "max_target_length": 4}}
    assert tiny.train(tmp_path, tiny.config(model("t5"), path, run, **settings)) == 0
    answers = [row["completion"] for row in rows]
    assert seen and all(each == [answers[:1], answers[1:]] for each in seen)


UNFIT: list[tuple[str, tiny.Rows, dict[str, Any], list[str]]] = [
    ("bert", tiny.topic_rows(8), {"score": "nlg"}, ["generation.score='nlg'", "'classification' generates none"]),
    ("bert", tiny.topic_rows(8), {"score": "blue"}, ["generation.score=blue", "['text', 'nlg', 'number', 'query']"]),
    (
        "gpt2",
        sums(4),
        {"rows": 2, "max_new_tokens": 250},
        ["max_new_tokens=250 after a prompt of", "the 256 positions"],
    ),
    ("bart", sums(4), {"max_new_tokens": 1025}, ["max_new_tokens=1025 exceeds the 1024 positions of this bart"]),
    ("llama", sums(4), {"score": "number"}, ["generation.score='number' needs text to score: set generation.rows"]),
    ("llama", tiny.message_rows(4), {"score": "nlg", "rows": 2}, ["generation.rows=2 needs prompts", "messages"]),
    (
        "llama",
        [*sums(4), {"prompt": "x", "completion": " no idea"}],
        {"score": "number", "rows": 2},
        ["validation row 5 has no number in its completion ' no idea'", "choose another score"],
    ),
]


@pytest.mark.parametrize(("name", "rows", "settings", "says"), UNFIT, ids=[str(settings) for *_, settings, _ in UNFIT])
def test_a_run_that_the_score_does_not_fit(
    model: Model,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    rows: tiny.Rows,
    settings: dict[str, Any],
    says: list[str],
) -> None:
    path, run = tiny.write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    content = tiny.config(model(name), path, run, generation=settings)
    capsys.readouterr()  # what transformers says when a model is saved is none of the run's
    assert tiny.train(tmp_path, content) == 2
    told = capsys.readouterr().err
    assert all(part in told for part in says) and told.count("\n") == 1, told
    assert not run.exists()
