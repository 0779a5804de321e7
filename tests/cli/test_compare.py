"""Whole comparisons through the command line: the folder, going on after a kill, failures, and what is refused."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

import tiny
from rankwise.cli import main
from rankwise.cli.spec_file import parse

Model = Callable[[str], Path]
CLOCKED = ("seconds", "peak_memory", "resumed")


def content(model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Two methods on one task, of which the learning rate of one is searched: four runs for the first seed."""
    rows = tiny.topic_rows(48)
    given = {
        "base": {
            "model": str(model),
            "data": {
                "train": tiny.write_rows(folder / "train.jsonl", rows[:36]),
                "validation": tiny.write_rows(folder / "validation.jsonl", rows[36:]),
                "max_length": 48,
            },
            "training": {"steps": 8, "batch_size": 4, "learning_rate": 0.01, "log_every": 2, "save_every": 4},
        },
        "tasks": {"topics": {}},
        "methods": {  # in the order in which the file has them
            "adaptive": {"name": "adalora", **tiny.SHORT, "learning_rates": [0.01]},
            "lora": {"learning_rates": [0.003, 0.01]},
        },
        "baseline": "lora",
        "budgets": ["3k"],
        "seeds": 1,
        "output": str(folder / "out"),
    }
    return copy.deepcopy(given | changes)


def compare(folder: Path, spec: dict[str, Any], *options: str) -> int:
    return main(["compare", tiny.write_config(folder / "spec.yaml", spec), *options])


def runs(out: Path) -> list[dict[str, Any]]:
    return tiny.lines(out / "runs.jsonl")


def test_a_comparison_from_its_spec_to_its_answer(model: Model, tmp_path: Path, capsys: Any) -> None:
    spec, out = content(model("bert"), tmp_path), tmp_path / "out"
    capsys.readouterr()
    assert compare(tmp_path, spec) == 0
    said = capsys.readouterr()
    assert said.err == "" and "lora at 3k: rank=3, 2,688 parameters (-10.4%)" in said.out
    assert "adaptive at 3k: rank=5, target_rank=3, budget=3000, " in said.out and "Take " in said.out
    assert [line["purpose"] for line in runs(out)] == ["final", "search", "search", "final"]
    names = {path.name for path in out.iterdir()}
    assert names >= {"spec.yaml", "environment.json", "runs.jsonl", "runs", "comparison.json", "comparison.md"}
    for line in runs(out):
        check_run(out, line)
    found = tiny.strict_json(out / "comparison.json")
    assert (found["not_run"], found["failed"], found["baseline"]) == ([], {}, "lora")
    assert [row["method"] for row in found["tasks"]["topics"]["rows"]] == ["adaptive", "lora"]
    assert found["answer"][0] in (out / "comparison.md").read_text(encoding="utf-8")

    before = (out / "runs.jsonl").read_bytes()
    assert compare(tmp_path, spec) == 0  # nothing is left to be run
    assert (out / "runs.jsonl").read_bytes() == before

    assert compare(tmp_path, spec, "--seeds", "2") == 0  # what is added is run, and nothing else
    new = [line["cell"] for line in runs(out)[4:]]
    assert [name.rpartition("/")[2] for name in new] == ["seed1", "seed1"]

    capsys.readouterr()
    assert compare(tmp_path, spec, "--base.training.steps", "9") == 2
    assert "base.training.steps=8, and is to go on with 9" in capsys.readouterr().err
    assert compare(tmp_path, spec, "--seeds", "3", "--report_only") == 1
    assert "not run yet: 2 of 6" in capsys.readouterr().out


def check_run(out: Path, line: dict[str, Any]) -> None:
    """Its folder is that of an ordinary run, and the line says what is in it."""
    run = out / line["folder"]
    results = tiny.strict_json(run / "results.json")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert {"config.yaml", "history.jsonl", "metrics.jsonl", "adapter"} <= {path.name for path in run.iterdir()}
    assert line["score"] == results["scores"]["accuracy"] and line["metric"] == "accuracy"
    for name in ("scores", "trainable_start", "trainable_end", "trainable_average", "head_parameters", "steps"):
        assert line[name] == results[name]
    assert (line["seed"], line["learning_rate"]) == (config["training"]["seed"], config["training"]["learning_rate"])
    assert line["cell"] in line["folder"] and line["task"] == "topics" and line["budget"] == "3k"
    assert line["trainable_end"] - line["head_parameters"] <= 3000
    searched = str(out / "search" / "topics" / "held_out.parquet")
    assert (config["data"]["validation"] == searched) is (line["purpose"] == "search")


# interruptions


def start(folder: Path, spec: dict[str, Any], *options: str) -> subprocess.Popen[bytes]:
    """In a process of its own, which ctrl-C interrupts even where the tests run in the background of a shell."""
    file = tiny.write_config(folder / "spec.yaml", spec)
    command = [sys.executable, "-W", "ignore", "-m", "rankwise", "compare", file, *options]
    return subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    while not what():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)


def long_runs(model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    spec = content(model, folder, **changes)
    spec["base"]["training"] |= {"steps": 80, "save_every": 10, "log_every": 5, "evaluate_every": "never"}
    return spec


def has_checkpoint(out: Path) -> bool:
    return any((out / "runs").rglob("checkpoint-*/trainer_state.json"))


def results_of(out: Path) -> dict[str, Any]:
    return {line["cell"]: {k: v for k, v in line.items() if k not in CLOCKED} for line in runs(out)}


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_ends_like_one_that_was_not(model: Model, tmp_path: Path) -> None:
    """SIGKILL in the middle of a run: scores to the last bit, no finished cell again, and no process stays behind."""
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    specs = {}
    for folder in (whole, killed):
        folder.mkdir()
        specs[folder] = long_runs(model("bert"), folder)
    assert compare(whole, specs[whole]) == 0
    out = killed / "out"
    process = start(killed, specs[killed], "--workers", "2")
    wait_for(lambda: has_checkpoint(out) and (out / "runs.jsonl").exists(), process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=tiny.HANGS)
    assert not alive
    finished = runs(out) if (out / "runs.jsonl").exists() else []
    assert len(finished) < 4
    assert compare(killed, specs[killed]) == 0
    assert [line["cell"] for line in runs(out)][: len(finished)] == [line["cell"] for line in finished]
    assert len(runs(out)) == len(results_of(out)) == 4
    assert any(line["resumed"] for line in runs(out))
    assert results_of(out) == results_of(tmp_path / "whole" / "out")


@pytest.mark.slow
def test_ctrl_c_leaves_a_partial_table(model: Model, tmp_path: Path) -> None:
    spec, out = long_runs(model("bert"), tmp_path), tmp_path / "out"
    process = start(tmp_path, spec)
    wait_for(lambda: has_checkpoint(out), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=tiny.HANGS) == 1
    found = tiny.strict_json(out / "comparison.json")
    assert len(found["not_run"]) == 2
    assert "not run" in (out / "comparison.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_run_that_is_killed_fails_alone_and_is_resumed_by_the_next_call(model: Model, tmp_path: Path) -> None:
    spec, out = long_runs(model("bert"), tmp_path), tmp_path / "out"
    process = start(tmp_path, spec)
    wait_for(lambda: has_checkpoint(out), process)
    cells = [p for p in psutil.Process(process.pid).children(recursive=True) if not p.children() and is_cell(p)]
    assert len(cells) == 1
    cells[0].kill()
    assert process.wait(timeout=tiny.HANGS) == 1
    lost = [line for line in runs(out) if "error" in line]
    assert len(lost) == 1 and "killed by SIGKILL" in lost[0]["error"]
    assert compare(tmp_path, spec) == 0
    [again] = [line for line in runs(out) if line["cell"] == lost[0]["cell"] and "error" not in line]
    assert again["resumed"]


def is_cell(process: psutil.Process) -> bool:
    """Forked from the server of cells: its parent is not the comparison itself."""
    parent = process.parent()
    return (
        parent is not None
        and "forkserver" in " ".join(parent.cmdline())
        and "forkserver" in " ".join(process.cmdline())
    )


@pytest.mark.slow
def test_the_time_may_be_up(model: Model, tmp_path: Path, capsys: Any) -> None:
    spec = content(model("bert"), tmp_path)
    assert compare(tmp_path, spec, "--max_hours", "0") == 1
    assert "not run yet: 2 of 2" in capsys.readouterr().out


@pytest.mark.slow
def test_what_fails_is_told_and_the_others_go_on(model: Model, tmp_path: Path, capsys: Any) -> None:
    spec, out = content(model("bert"), tmp_path), tmp_path / "out"
    spec["tasks"] = {"strange": {"init_from": str(tmp_path / "nothing")}, "topics": {}}
    spec |= {"methods": {"bitfit": {"learning_rates": [0.01]}}, "baseline": "bitfit"}
    assert compare(tmp_path, spec) == 1
    assert "strange/bitfit/lr0.01/seed0: failed: " in capsys.readouterr().out
    assert [("error" in line, line["task"]) for line in runs(out)] == [(True, "strange"), (False, "topics")]
    assert list(tiny.strict_json(out / "comparison.json")["failed"]) == ["strange/bitfit/lr0.01/seed0"]
    assert compare(tmp_path, spec) == 1
    assert len(runs(out)) == 3  # tried again, and nothing else


@pytest.mark.slow
def test_a_rate_at_which_training_diverges_loses(model: Model, tmp_path: Path) -> None:
    spec, out = content(model("bert"), tmp_path), tmp_path / "out"
    spec["base"]["training"] |= {"steps": 30, "clip": 0}
    spec |= {"methods": {"full": {"learning_rates": [0.001, 1e5]}}, "baseline": "full"}
    assert compare(tmp_path, spec) == 0
    rates = {line["learning_rate"]: line for line in runs(out) if line["purpose"] == "search"}
    assert rates[1e5]["score"] is None or rates[1e5]["score"] <= rates[1e-3]["score"]
    assert [line["learning_rate"] for line in runs(out) if line["purpose"] == "final"] == [1e-3]


# what is refused

BAD: list[tuple[str, Any, list[str]]] = [
    ("tsks", {}, ["unknown key 'tsks'", "Did you mean 'tasks'?"]),
    ("base.trainng", {}, ["unknown key 'base.trainng'", "Did you mean 'training'?"]),
    ("base.training.stps", 5, ["unknown key 'training.stps'", "Did you mean 'steps'?"]),
    ("base.training.steps", "many", ["training.steps=many is not possible", "a whole number"]),
    ("base.method", "lora", ["unknown key 'base.method'"]),
    ("base.model", "./no/such/folder", ["./no/such/folder"]),
    ("tasks.topics.metrc", "f1", ["unknown key 'tasks.topics.metrc'", "Did you mean 'metric'?"]),
    ("tasks.topics.metric", "acuracy", ["tasks.topics.metric='acuracy' is none of", "Did you mean 'accuracy'?"]),
    ("tasks.topics.metric", "bleu", ["tasks.topics.metric='bleu' is none of the scores of its runs, which are ['acc"]),
    ("tasks.topics.task", "classifcation", ["unknown task 'classifcation'", "Did you mean 'classification'?"]),
    ("tasks.topics.task", "seq2seq", ["a bert model has no head for task 'seq2seq'"]),
    ("tasks", {}, ["tasks=[]: at least one"]),
    ("tasks", {"../up": {}}, ["'../up' cannot be"]),
    ("methods.lora.rnk", 4, ["methods.lora on topics: unknown key 'method.rnk'", "Did you mean 'rank'?"]),
    ("methods.lora.name", "loro", ["methods.lora: 'loro' is no method", "Did you mean 'lora'?"]),
    ("methods.lora.training", {"epochz": 1}, ["unknown key 'methods.lora.training.epochz'", "'epochs'"]),
    ("methods.lora.learning_rates", [], ["methods.lora.learning_rates=[] is no list of learning rates"]),
    ("methods.lora.learning_rates", 0.01, ["methods.lora.learning_rates=0.01 is no list of learning rates"]),
    ("methods.lora.learning_rates", ["1e-3", "fast"], ["methods.lora.learning_rates=[0.001, 'fast'] is no list"]),
    ("methods.lora.counted", "now", ["methods.lora.counted='now' is none of"]),
    ("methods.adaptive.warmup", 9, ["methods.adaptive on topics", "leave no step"]),
    ("methods.mine", {}, ["methods.mine: 'mine' is no method"]),
    ("budgets", ["much"], ["budget='much' is no size"]),
    ("budgets", [{"rnk": 3}], ["budgets: {'rnk': 3} is none"]),
    ("budgets", ["3k", "3k"], ["one stands there twice"]),
    ("seeds", 0, ["seeds=0 must be a number of seeds"]),
    ("seeds", [1, 1], ["seeds=[1, 1]"]),
    ("seeds", "three", ["seeds=three is not possible", "a whole number or a list of whole numbers"]),
    ("baseline", "lra", ["baseline='lra' is none of the methods", "Did you mean 'lora'?"]),
    ("search", {"rowz": 1}, ["unknown key 'search.rowz'", "Did you mean 'rows'?"]),
    ("search", {"held_out": 2}, ["search.held_out=2"]),
    ("search", {"learning_rates": [0.0]}, ["search.learning_rates=[0.0]"]),
    ("published", [{"task": "topcs", "method": "a", "value": 1, "source": "b"}], ["Did you mean 'topics'?"]),
    ("published", [{"task": "topics"}], ["published[0] has no method"]),
    ("published", [{"task": "topics", "method": "a", "value": "1", "source": "b"}], ["published[0] has value='1'"]),
    ("published", [{"task": "topics", "metod": "a"}], ["unknown key 'published[0].metod'", "Did you mean 'method'?"]),
    ("published", "Hu et al.", ["published='Hu et al.' is not possible"]),
    ("counted", "later", ["one of ['end', 'average', 'start']"]),
    ("output", None, ["output is missing"]),
]


@pytest.mark.parametrize(("where", "value", "says"), BAD, ids=lambda part: str(part)[:40])
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    where: str, value: Any, says: list[str], model: Model, tmp_path: Path, capsys: Any
) -> None:
    spec = content(model("bert"), tmp_path)
    *path, last = where.split(".")
    inside = spec
    for name in path:
        inside = inside[name]
    if value is None:
        del inside[last]
    else:
        inside[last] = value
    capsys.readouterr()
    assert compare(tmp_path, spec) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("rankwise compare: ") and said.err.count("\n") == 1, said
    assert all(part in said.err for part in says), said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--modle", "x"], "Did you mean '--model'?"),
        (["--base.traning.steps", "3"], "unknown key 'base.traning'"),
        (["--workers", "0"], "--workers 0 is not possible; give 1 or more"),
        (["--executor", "slurm"], "executor"),
        (["--report_only"], "holds no comparison yet"),
        (["--base.model.name", "x"], "nothing inside to be set"),
    ],
)
def test_bad_options(options: list[str], says: str, model: Model, tmp_path: Path, capsys: Any) -> None:
    assert compare(tmp_path, content(model("bert"), tmp_path), *options) == 2
    assert says in capsys.readouterr().err


def test_print_config_says_all_and_makes_the_same_comparison(model: Model, tmp_path: Path, capsys: Any) -> None:
    spec = content(model("bert"), tmp_path)
    assert compare(tmp_path, spec, "--print_config", "--tasks.topics.data.max_length=20", "--seeds=[4,5]") == 0
    printed = capsys.readouterr().out
    whole = yaml.safe_load(printed)
    assert whole["tasks"]["topics"] == {"data": {"max_length": 20}} and whole["seeds"] == [4, 5]
    assert whole["base"]["training"]["clip"] == 1.0 and whole["search"]["held_out"] == 0.2
    assert compare(tmp_path, whole, "--print_config") == 0
    assert capsys.readouterr().out == printed
    assert json.dumps(whole)


def test_without_a_grid_the_rates_are_around_the_method_s_own(model: Model, tmp_path: Path) -> None:
    spec = content(model("bert"), tmp_path) | {"methods": {"lora": {}, "adalora": tiny.SHORT, "full": {}}}
    asked = parse([tiny.write_config(tmp_path / "spec.yaml", spec)])
    assert {contender.method: contender.rates for contender in asked.contenders} == {
        "lora": (0.0003, 0.001, 0.003),
        "adalora": (0.0015, 0.005, 0.015),
        "full": (1.5e-05, 5e-05, 0.00015),
    }


def test_a_rate_may_be_written_as_yaml_does_not_know_it(model: Model, tmp_path: Path) -> None:
    """1e-3 without a point is text in YAML."""
    spec = content(model("bert"), tmp_path)
    spec["methods"]["lora"]["learning_rates"] = "RATES"
    text = yaml.safe_dump(spec).replace("RATES", "[1e-3, 3e-3, 0.01]")
    (tmp_path / "spec.yaml").write_text(text, encoding="utf-8")
    asked = parse([str(tmp_path / "spec.yaml")])
    assert {contender.rates for contender in asked.contenders if contender.method == "lora"} == {(0.001, 0.003, 0.01)}


def test_model_stands_for_the_base_s(model: Model, tmp_path: Path, capsys: Any) -> None:
    assert compare(tmp_path, content(model("bert"), tmp_path), "--print_config", "--model", "user/other") == 0
    assert yaml.safe_load(capsys.readouterr().out)["base"]["model"] == "user/other"


def test_help_is_complete(capsys: Any) -> None:
    assert main(["compare", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--budgets", "--search.held_out", "--base.training.epochs", "--workers", "--report_only", "--model"):
        assert option in text
