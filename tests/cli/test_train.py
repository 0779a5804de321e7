"""Whole runs through the command line: every task, the run folder, and what can be done with it afterwards."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import rankwise as rw
import tiny
from rankwise.cli import main
from rankwise.methods import METHODS
from rankwise.train.config import GenerationConfig, RunConfig, TrainingConfig
from rankwise.train.data_config import DataConfig
from sampled import some

Model = Callable[[str], Path]


@dataclass(frozen=True)
class Case:
    """One kind of run."""

    model: str
    task: str
    write: Callable[[Path], str]  # folder -> data file
    primary: str
    changes: dict[str, Any] = field(default_factory=dict)


def rows(make: Callable[[], tiny.Rows]) -> Callable[[Path], str]:
    return lambda folder: tiny.write_rows(folder / "rows.jsonl", make())


def text_rows() -> tiny.Rows:
    return [{"text": row["text"]} for row in tiny.topic_rows(16)]


def pair_rows() -> tiny.Rows:
    return tiny.pair_rows(12)


def summary_rows() -> tiny.Rows:
    return tiny.pair_rows(12, "document", "summary")


def squad(folder: Path) -> str:
    return tiny.squad_file(folder / "squad.json")


GENERATED = {"generation": {"max_new_tokens": 4, "rows": 3}}
SHORTEN = {"data": {"prompt_prefix": "shorten: "}, "generation": {"max_new_tokens": 4}}
BEAMS = {"generation": {"max_new_tokens": 4, "beams": 2, "length_penalty": 0.5, "no_repeat_ngram_size": 2}}
CASES = {
    "classification": Case("bert", "classification", rows(lambda: tiny.topic_rows(16)), "accuracy"),
    "regression": Case("bert", "regression", rows(lambda: tiny.score_rows(16)), "pearson", {"method": tiny.AFLORA}),
    "span-qa": Case("bert", "span-qa", squad, "f1", {"data": {"document_stride": 8}}),
    "seq2seq-bart": Case("bart", "seq2seq", rows(pair_rows), "rougeL", BEAMS),
    "seq2seq-t5": Case("t5", "seq2seq", rows(summary_rows), "rougeL", {**SHORTEN, "method": tiny.AFLORA}),
    "causal-pairs": Case("llama", "causal-lm", rows(pair_rows), "perplexity", GENERATED),
    "causal-text": Case("gpt2", "causal-lm", rows(text_rows), "perplexity", {"method": tiny.LORA}),
    "causal-messages": Case("llama", "causal-lm", rows(lambda: tiny.message_rows(12)), "perplexity"),
}


def files(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def scores(run: Path) -> dict[str, float]:
    found: dict[str, float] = tiny.strict_json(run / "results.json")["scores"]
    return found


def assert_same_adapter(first: Path, second: Path) -> None:
    one, two = (load_file(run / "adapter" / "adapter.safetensors") for run in (first, second))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("case", some(list(CASES.values()), kept=(0, 1, 2, 3, 5)), ids=CASES)
def test_a_run_of_each_task(case: Case, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder is complete, `evaluate` finds the same numbers, and config.yaml makes the same run again."""
    run, again = tmp_path / "run", tmp_path / "again"
    content = tiny.config(model(case.model), case.write(tmp_path), run, **case.changes)
    capsys.readouterr()  # what transformers says when a model is saved is none of the run's
    assert tiny.train(tmp_path, content) == 0
    said = capsys.readouterr()
    assert said.err == "" and f"task: {case.task}, because" in said.out and str(run) in said.out
    check_folder(run, case)

    assert main(["evaluate", str(run)]) == 0
    assert f"{case.primary} is exactly what the run reported" in capsys.readouterr().out

    assert main(["train", str(run / "config.yaml"), f"--output={again}"]) == 0
    assert_same_adapter(run, again)
    assert scores(run) == scores(again)
    assert (run / "history.jsonl").read_bytes() == (again / "history.jsonl").read_bytes()


def check_folder(run: Path, case: Case) -> None:
    made = {"config.yaml", "environment.json", "history.jsonl", "metrics.jsonl", "results.json"}
    assert files(run) == made | {"adapter", "checkpoints"}
    assert {"adapter.safetensors", "rankwise.json"} <= files(run / "adapter")
    assert files(run / "checkpoints") == {"checkpoint-4", "checkpoint-8"}
    results = tiny.strict_json(run / "results.json")
    assert (results["task"], results["primary"], results["steps"]) == (case.task, case.primary, 8)
    assert case.primary in results["scores"]
    assert tiny.strict_json(run / "environment.json")["packages"]["torch"] == torch.__version__
    events = tiny.lines(run / "history.jsonl")
    assert events[0]["event"] == "started" and all(e["step"] < 8 for e in events)
    steps = [line["step"] for line in tiny.lines(run / "metrics.jsonl") if "loss" in line]
    assert steps == [2, 4, 6, 8]
    assert len(results["samples"]) == case.changes.get("generation", {}).get("rows", 0)


def test_the_config_in_the_run_folder_is_complete(model: Model, topics: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert tiny.train(tmp_path, tiny.config(model("bert"), topics, run, method="lora"), "--training.steps=1") == 0
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved.keys() == {f.name for f in fields(RunConfig)}
    for section, cls in (("training", TrainingConfig), ("data", DataConfig), ("generation", GenerationConfig)):
        assert saved[section].keys() == {f.name for f in fields(cls)}
    assert saved["method"].keys() == {"name"} | {f.name for f in fields(METHODS["lora"])}
    assert saved["training"]["steps"] == 1


def test_minilm_learns_topics_from_the_shell(tmp_path: Path) -> None:
    """The installed command, the real model, its own process."""
    rows = tiny.topic_rows(48)
    data = {"validation": tiny.write_rows(tmp_path / "held.jsonl", rows[36:]), "max_length": 24}
    content = tiny.config(tiny.MINILM, tiny.write_rows(tmp_path / "rows.jsonl", rows[:36]), tmp_path / "run", data=data)
    content["method"] = {"name": "adalora", "rank": 6, "target_rank": 4, "warmup": 3, "cooldown": 4, "every": 1}
    content["training"] = {"steps": 14, "batch_size": 12, "learning_rate": 5e-3, "head_learning_rate": 0.1}
    command = [
        str(Path(sys.executable).with_name("rankwise")),
        "train",
        tiny.write_config(tmp_path / "a.yaml", content),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "live ranks" in done.stdout and "always 'harbour'" in done.stdout
    assert scores(tmp_path / "run")["accuracy"] >= 0.9
    last = [e for e in tiny.lines(tmp_path / "run" / "history.jsonl") if e["event"] == "allocated"][-1]
    assert last["live"] == 4 * len(last["ranks"])


# what can be done with a run


@pytest.fixture(scope="module")
def finished(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished AdaLoRA run that gets more rows right than wrong: not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    train = tiny.write_rows(folder / "rows.jsonl", tiny.topic_rows())
    training = {"steps": 40, "batch_size": 16, "learning_rate": 0.005, "head_learning_rate": 0.05}
    method = {"name": "adalora", "rank": 3, "target_rank": 2, "warmup": 5, "cooldown": 10, "every": 5}
    assert tiny.train(folder, tiny.config(model("bert"), train, folder / "run", method=method, training=training)) == 0
    assert scores(folder / "run")["accuracy"] > 0.6
    return folder / "run"


def test_evaluate_notices_a_changed_adapter(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    file = run / "adapter" / "adapter.safetensors"
    tensors = load_file(file)
    tensors["classifier.weight"] *= -1
    tensors["classifier.bias"] *= -1
    save_file(tensors, file)
    assert main(["evaluate", str(run)]) == 1
    assert "accuracy is NOT what the run reported" in capsys.readouterr().out


def test_inspect_a_run_and_an_adapter(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = [e for e in tiny.lines(finished / "history.jsonl") if e["event"] == "allocated"][-1]
    printed = []
    for what in (finished, finished / "adapter"):
        assert main(["inspect", str(what)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert f"13 layers, {sum(last['ranks'].values())} ranks live" in printed[0]
    first = next(line for line in printed[0].splitlines() if "layer.0" in line)
    shown = [int(cell) for cell in first.replace("│", " ").split()[1:]]
    assert shown == [rank for name, rank in last["ranks"].items() if ".layer.0." in name]
    assert "trained in full: classifier.weight, classifier.bias" in printed[0]


def test_inspect_shows_what_is_frozen(model: Model, topics: str, tmp_path: Path, capsys: Any) -> None:
    method = {**tiny.AFLORA, "scope": "ffn"}
    assert tiny.train(tmp_path, tiny.config(model("bert"), topics, tmp_path / "run", method=method)) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "run")]) == 0
    assert " 3 AB " in capsys.readouterr().out


def test_inspect_a_model(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model("llama"))]) == 0
    table = capsys.readouterr().out
    for name, role, size in (("self_attn.k_proj", "attention", "16 × 32"), ("mlp.down_proj", "ffn", "32 × 48")):
        line = next(line for line in table.splitlines() if f"layers.1.{name}" in line)
        assert role in line and size in line


def test_init_from_takes_the_adapter_and_not_the_head(finished: Path, model: Model, tmp_path: Path) -> None:
    """One step with a learning rate of 0 on three classes: the adapter is the other run's, the head is new."""
    method = yaml.safe_load((finished / "config.yaml").read_text())["method"] | {"orthogonality": 0.0}
    method |= {"warmup": 1, "cooldown": 1, "every": 1, "target_rank": 3, "mask": "release"}
    rows = [*tiny.topic_rows(8), {"text": "Snow closed the pass.", "label": "weather"}]
    content = tiny.config(
        model("bert"),
        tiny.write_rows(tmp_path / "three.jsonl", rows),
        tmp_path / "run",
        method=method,
        init_from=str(finished / "adapter"),
        training={"steps": 3, "learning_rate": 0.0},
    )
    assert tiny.train(tmp_path, content) == 0
    before, after = (load_file(r / "adapter" / "adapter.safetensors") for r in (finished, tmp_path / "run"))
    for name in before:
        if "::" in name and not name.endswith("::live"):
            assert torch.equal(before[name], after[name]), name
    assert after["classifier.weight"].shape == (3, 32)


# settings that every run may need


SETTINGS: dict[str, dict[str, Any]] = {
    "accumulation": {"gradient_accumulation": 2},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "checkpointing": {"gradient_checkpointing": True},
    "best": {"load_best": True, "evaluate_every": 2, "save_every": 2, "keep_checkpoints": 1},
    "fused": {"optimizer": "adamw_torch_fused", "weight_decay": 0.1, "head_learning_rate": 0.001},
    "epochs": {
        "steps": None,
        "epochs": 2.0,
        "batch_size": 8,
        "save_every": "epoch",
        "scheduler": "cosine",
        "clip": 0.0,
    },
}


@pytest.mark.parametrize("name", some(["bert", "llama"]))
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_training(setting: str, name: str, model: Model, tmp_path: Path) -> None:
    made = tiny.topic_rows(32) if name == "bert" else tiny.pair_rows(24)
    train = tiny.write_rows(tmp_path / "rows.jsonl", made)
    run = tmp_path / "run"
    assert tiny.train(tmp_path, tiny.config(model(name), train, run, training=SETTINGS[setting])) == 0
    steps = {"bert": 8, "llama": 6}[name] if setting == "epochs" else 8
    assert tiny.strict_json(run / "results.json")["steps"] == steps
    allocated = [e for e in tiny.lines(run / "history.jsonl") if e["event"] == "allocated"]
    assert allocated[-1]["step"] == steps - 3 and allocated[-1]["live"] == 2 * len(allocated[-1]["ranks"])
    assert main(["evaluate", str(run)]) == 0


def test_a_metric_that_is_not_a_number_is_null(model: Model, tmp_path: Path) -> None:
    """All labels of the validation rows are equal, so that no correlation exists; the files stay JSON."""
    held = tiny.write_rows(tmp_path / "held.jsonl", [{**row, "label": 1.5} for row in tiny.score_rows(6)])
    train = tiny.write_rows(tmp_path / "rows.jsonl", tiny.score_rows(8))
    content = tiny.config(model("bert"), train, tmp_path / "run", data={"validation": held}, task="regression")
    assert tiny.train(tmp_path, content) == 0
    assert scores(tmp_path / "run")["pearson"] is None
    assert any("eval_pearson" in line for line in tiny.lines(tmp_path / "run" / "metrics.jsonl"))
    assert main(["evaluate", str(tmp_path / "run")]) == 0


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class Config(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = Config
"""


def test_a_model_that_brings_its_code_is_trained_for_who_trusts_it(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(shutil.copytree(model("llama"), tmp_path / "own"))
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"model_type": "own", "auto_map": names, "architectures": ["OwnForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.pair_rows(24))
    content = tiny.config(folder, rows, tmp_path / "run") | {"trust_remote_code": True}
    assert tiny.train(tmp_path, content) == 0
    assert tiny.strict_json(tmp_path / "run" / "results.json")["task"] == "causal-lm"
    assert main(["evaluate", str(tmp_path / "run"), "--trust_remote_code"]) == 0


# the command line itself


def printed(options: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["train", *options, "--print_config"]) == 0
    content: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return content


def test_any_field_can_be_given_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny.write_config(tmp_path / "run.yaml", tiny.config("some/model", "rows.jsonl", tmp_path / "run"))
    options = ["--method.rank", "4", "--training.steps=3", "--training.learning_rate=1e-4", "--data.text", "body"]
    shown = printed([file, *options, "--method.targets=[query,value]", "--task", "regression"], capsys)
    assert shown["method"]["rank"] == 4 and shown["method"]["target_rank"] == 2
    assert shown["method"]["targets"] == ["query", "value"]
    assert shown["training"]["steps"] == 3 and shown["training"]["learning_rate"] == 1e-4
    assert shown["data"]["text"] == "body" and shown["data"]["max_length"] == 48
    assert shown["task"] == "regression"


@pytest.mark.parametrize("name", ["lora", "adalora", "full"])
def test_without_a_rate_the_method_s_own_is_taken_and_written_out(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = tiny.config("m", "rows.jsonl", tmp_path, method={"name": name})
    del content["training"]["learning_rate"]
    file = tiny.write_config(tmp_path / "run.yaml", content)
    assert main(["train", file, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["training"]["learning_rate"] == METHODS[name].learning_rate


@pytest.mark.parametrize("options", [["--method", "lora"], ["--method=lora"], ["--method.name", "lora"]])
def test_the_method_can_be_changed(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of the file's method lingers: what is not given is the new method's default."""
    file = tiny.write_config(tmp_path / "run.yaml", tiny.config("some/model", "rows.jsonl", tmp_path / "run"))
    method = printed([file, *options, "--method.alpha=6"], capsys)["method"]
    assert (method["name"], method["rank"], method["alpha"]) == ("lora", rw.LoRA().rank, 6)
    assert "target_rank" not in method


def test_a_run_needs_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model=m", "--method=aflora", "--data.train=rows.jsonl", "--output=out", "--method.warmup", "1 epoch"]
    shown = printed(options, capsys)
    assert shown["method"]["name"] == "aflora" and shown["method"]["warmup"] == "1 epoch"


@pytest.mark.parametrize("method", METHODS)
def test_what_is_printed_is_a_config_again(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spans = {"warmup": "2 epochs"} if "warmup" in {f.name for f in fields(METHODS[method])} else {}
    content = tiny.config("some/model", "rows.jsonl", tmp_path / "run", method={"name": method, **spans})
    if method == "lora":
        content["method"] = {"name": "lora", "alpha_pattern": {"query": 2.5}}
    once = printed([tiny.write_config(tmp_path / "run.yaml", content)], capsys)
    twice = printed(["--config", tiny.write_config(tmp_path / "again.yaml", once)], capsys)
    assert once == twice
    assert json.dumps(once) and not (tmp_path / "run").exists()
