"""Run folders, checkpoints, configurations, models and data files that somebody else made: refused, never run."""

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import rankwise as rw
import tiny
from rankwise.cli import main
from rankwise.train import record
from rankwise.train.job import make_job

SECONDS = 2.0  # of the processor
CANARY = "canary"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in "run", with its configuration in "run.yaml"."""
    place = tmp_path_factory.mktemp("ground")
    model = tiny.save_model("bert", place / "model")
    rows = tiny.write_rows(place / "rows.jsonl", tiny.topic_rows())
    content = tiny.config(model, rows, place / "run", method=tiny.ADALORA)
    assert tiny.train(place, content) == 0
    return place


@pytest.fixture
def finished(ground: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ground / "run", tmp_path / "run"))


@pytest.fixture
def unfinished(finished: Path) -> Path:
    """It died after step 4 of 8."""
    (finished / "results.json").unlink()
    shutil.rmtree(finished / "adapter")
    shutil.rmtree(finished / "checkpoints" / "checkpoint-8")
    config = yaml.safe_load((finished / "config.yaml").read_text()) | {"output": str(finished)}
    (finished / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return finished


class Payload:
    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder / CANARY}"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], place: Path) -> str:
    """The one line that the command says; it is quick, and runs nothing of the files."""
    capsys.readouterr()
    began = time.process_time()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said and "\x1b" not in said
    assert time.process_time() - began < SECONDS + 3  # with the model and the data of the run, where it got so far
    assert not (place / CANARY).exists()
    return said


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
YAMLS: dict[str, str | bytes] = {
    "laughs": BOMB,
    "merges": "a: &a {x: 1}\n"
    + "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "itself": "a: &a [*a]",
    "brackets": "[" * 40_000,
    "braces": "{a: " * 10_000,
    "dashes": "- " * 20_000,
    "large": "a: " + "x" * 10**6,
    "list": "[1, 2]",
    "nothing": "",
    "text": "hello",
    "two": "a: 1\n---\nb: 2\n",
    "tab": "a:\n\t- b",
    "no-utf8": b"model: \xff\xfe",
    "nul": b"model: \0",
    "python": "model: !!python/object/apply:os.system ['touch canary']",
    "python-name": "model: !!python/name:os.system",
    "python-module": "!!python/module:antigravity {}",
    "binary": "model: !!binary aGVsbG8=",
    "set": "model: !!set {a, b}",
    "digits": "model: " + "9" * 10_000,
    "key-list": "{[1, 2]: 3}",
    "class-path": "method: {class_path: os.system, init_args: {command: id}}",
    "method-code": "method: {name: os.system}",
    "unknown": "modle: x",
}


@pytest.mark.parametrize("how", YAMLS)
def test_a_configuration(how: str, finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In a run folder that is evaluated, in one that is resumed, and as the file of a command."""
    text = YAMLS[how]
    (finished / "config.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    refused(["evaluate", str(finished)], capsys, tmp_path)
    refused(["train", str(finished / "config.yaml")], capsys, tmp_path)
    (finished / "results.json").unlink()
    with pytest.raises(rw.RankwiseError):
        record.check_output(finished, made(finished), resume=True)


def made(output: Path) -> Any:
    from rankwise.cli.config_file import config_from_dict

    return config_from_dict(tiny.config("model", "rows.jsonl", output, method=tiny.LORA))


RESULTS: dict[str, str | bytes] = {
    "nothing": "",
    "list": "[]",
    "deep": "[" * 100_000,
    "bomb": '{"scores": [' + "[]," * 1_000_000 + "[]]}",
    "large": '{"primary": "' + "x" * 10**7 + '"}',
    "digits": '{"scores": {"accuracy": ' + "9" * 10_000 + "}}",
    "nan": '{"scores": {"accuracy": NaN}, "primary": "accuracy"}',
    "no-scores": '{"primary": "accuracy"}',
    "scores-list": '{"primary": "accuracy", "scores": ["accuracy"]}',
    "scores-text": '{"primary": "accuracy", "scores": {"accuracy": "1"}}',
    "no-primary": '{"scores": {"accuracy": 1}}',
    "primary-list": '{"primary": ["accuracy"], "scores": {"accuracy": 1}}',
    "primary-unknown": '{"primary": "f1", "scores": {"accuracy": 1}}',
    "primary-of-another-task": '{"primary": "bleu", "scores": {"bleu": 1}}',
    "utf16": '{"scores": {}}'.encode("utf-16"),
}


@pytest.mark.parametrize("how", RESULTS)
def test_results(how: str, finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = RESULTS[how]
    (finished / "results.json").write_bytes(text.encode() if isinstance(text, str) else text)
    refused(["evaluate", str(finished)], capsys, tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "results.json"])
def test_places(name: str, finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = finished / name
    for make in (
        lambda: path.symlink_to("/etc/passwd"),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path),
        lambda: path.mkdir(),
        lambda: os.mkfifo(path),
    ):
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        make()
        refused(["evaluate", str(finished)], capsys, tmp_path)


def test_a_run_that_asks_for_code(finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = finished / "config.yaml"
    path.write_text(path.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    assert "--trust_remote_code" in refused(["evaluate", str(finished)], capsys, tmp_path)
    assert main(["evaluate", str(finished), "--trust_remote_code"]) == 0


CHECKPOINT: dict[str, Callable[[Path], object]] = {
    "no-state": lambda c: (c / "trainer_state.json").unlink(),
    "no-sums": lambda c: (c / "loss_sums.json").unlink(),
    "state-cut": lambda c: (c / "trainer_state.json").write_text('{"global_step": 4,'),
    "state-list": lambda c: (c / "trainer_state.json").write_text("[]"),
    "state-deep": lambda c: (c / "trainer_state.json").write_text("[" * 100_000),
    "state-large": lambda c: os.truncate(c / "trainer_state.json", 10**10),
    "state-step": lambda c: change(c / "trainer_state.json", global_step="4"),
    "state-history": lambda c: change(c / "trainer_state.json", log_history={"a": 1}),
    "state-callbacks": lambda c: change(c / "trainer_state.json", stateful_callbacks=[1]),
    "state-unknown": lambda c: change(c / "trainer_state.json", **{"no such field": 1}),
    "state-link": lambda c: relink(c / "trainer_state.json"),
    "sums-text": lambda c: change(c / "loss_sums.json", total="1"),
    "sums-seconds": lambda c: change(c / "loss_sums.json", seconds="long"),
    "sums-list": lambda c: (c / "loss_sums.json").write_text("[1, 2, 3]"),
    "sums-others": lambda c: change(c / "loss_sums.json", since_logged=[0.0, 0.0, 0.0]),
    "optimizer-code": lambda c: torch.save(Payload(c.parents[2]), c / "optimizer.pt"),
    "optimizer-pickle": lambda c: (c / "optimizer.pt").write_bytes(pickle.dumps(Payload(c.parents[2]), protocol=2)),
    "optimizer-cut": lambda c: os.truncate(c / "optimizer.pt", 500),
    "optimizer-empty": lambda c: (c / "optimizer.pt").write_bytes(b""),
    "optimizer-other": lambda c: torch.save({"state": {}, "param_groups": []}, c / "optimizer.pt"),
    "optimizer-list": lambda c: torch.save([1, 2], c / "optimizer.pt"),
    "optimizer-link": lambda c: relink(c / "optimizer.pt"),
    "scheduler-code": lambda c: torch.save(Payload(c.parents[2]), c / "scheduler.pt"),
    "scheduler-list": lambda c: torch.save([1, 2], c / "scheduler.pt"),
    "random-code": lambda c: torch.save(Payload(c.parents[2]), c / "rng_state.pth"),
    "random-empty": lambda c: torch.save({}, c / "rng_state.pth"),
    "adapter-cut": lambda c: os.truncate(c / "adapter.safetensors", 300),
    "adapter-state": lambda c: (c / "state.safetensors").unlink(),
    "adapter-description": lambda c: (c / "rankwise.json").write_text("{}"),
    "metrics-text": lambda c: (c.parents[1] / "metrics.jsonl").write_text("hello\nhello\n"),
    "metrics-step": lambda c: (c.parents[1] / "metrics.jsonl").write_text('{"step": "1"}\n{"loss": 1}\n'),
    "metrics-deep": lambda c: (c.parents[1] / "metrics.jsonl").write_text("[" * 100_000 + "\n{}\n"),
    "metrics-line": lambda c: os.truncate(c.parents[1] / "metrics.jsonl", 10**9),
    "metrics-link": lambda c: relink(c.parents[1] / "metrics.jsonl"),
    "history-text": lambda c: (c.parents[1] / "history.jsonl").write_text("hello\nhello\n"),
    "history-step": lambda c: (c.parents[1] / "history.jsonl").write_text('{"event": "froze"}\n[1]\n'),
    "history-deep": lambda c: (c.parents[1] / "history.jsonl").write_text("[" * 100_000 + "\n{}\n"),
    "history-line": lambda c: os.truncate(c.parents[1] / "history.jsonl", 10**9),
    "history-link": lambda c: relink(c.parents[1] / "history.jsonl"),
}
FAST = {"no-state", "state-callbacks", "state-link", "sums-others", "optimizer-code", "optimizer-cut", "scheduler-code"}
FAST |= {"random-code", "adapter-state", "metrics-text", "history-text", "history-link"}


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def relink(path: Path) -> None:
    secret = path.parents[1] / "secret"
    shutil.move(path, secret)
    path.symlink_to(secret)


@pytest.mark.parametrize("how", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CHECKPOINT])
def test_what_a_run_is_resumed_from(
    how: str, unfinished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    CHECKPOINT[how](unfinished / "checkpoints" / "checkpoint-4")
    history = (unfinished / "history.jsonl").read_bytes() if "history" not in how else b""
    said = refused_after_start(["train", str(unfinished / "config.yaml"), "--resume"], capsys, tmp_path)
    assert str(unfinished) in said
    if history:
        assert (unfinished / "history.jsonl").read_bytes().startswith(history[:50])


def refused_after_start(arguments: list[str], capsys: pytest.CaptureFixture[str], place: Path) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and not (place / CANARY).exists()
    return said


def test_an_unspoilt_run_resumes(unfinished: Path) -> None:
    assert main(["train", str(unfinished / "config.yaml"), "--resume"]) == 0


EVIL = """
from pathlib import Path
Path({canary!r}).touch()
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
class Config(BertConfig):
    model_type = "evil"
class Model(BertForSequenceClassification):
    config_class = Config
class Words(BertTokenizer):
    pass
"""


@pytest.fixture
def evil(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that comes with code, of a kind that transformers does not know."""
    folder = Path(shutil.copytree(ground / "model", tmp_path / "model"))
    (folder / "evil.py").write_text(EVIL.format(canary=str(tmp_path / CANARY)))
    names = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    change(folder / "config.json", model_type="evil", auto_map=names)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def test_a_model_with_code_is_refused(
    evil: Path, ground: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is to be asked"))
    content = tiny.config(evil, str(ground / "rows.jsonl"), tmp_path / "out", method=tiny.LORA)
    config = tiny.write_config(tmp_path / "evil.yaml", content)
    assert "trust_remote_code" in refused(["train", config], capsys, tmp_path)
    refused(["inspect", str(evil)], capsys, tmp_path)
    assert main(["train", config, "--trust_remote_code", "true", "--print_config"]) == 0
    assert not (tmp_path / CANARY).exists()
    main(["train", config, "--trust_remote_code", "true"])  # the user says so
    assert (tmp_path / CANARY).exists()


def test_a_plan_of_a_model_with_code(evil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trusted, its config is read; the model is never made."""
    command = ["plan", str(evil), "--method", "lora", "--data.max_length", "16"]
    refused(command, capsys, tmp_path)
    assert not (tmp_path / CANARY).exists()
    assert main([*command, "--trust_remote_code", "true"]) == 2
    assert "none of transformers' own, and planning does not run the code" in capsys.readouterr().err
    assert (tmp_path / CANARY).exists()


def test_a_tokenizer_with_code_is_not_run(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is to be asked"))
    folder = Path(shutil.copytree(ground / "model", tmp_path / "model"))
    (folder / "evil.py").write_text(EVIL.format(canary=str(tmp_path / CANARY)))
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Words", "evil.Words"]})
    content = tiny.config(folder, str(ground / "rows.jsonl"), tmp_path / "out", method=tiny.LORA)
    assert tiny.train(tmp_path, content) in (0, 2)
    assert not (tmp_path / CANARY).exists()


def test_a_job_trusts_nothing_by_itself(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    said: list[Any] = []
    for loader in (AutoConfig, AutoTokenizer, AutoModelForSequenceClassification):
        load = loader.from_pretrained

        def noting(*given: Any, _load: Any = load, **named: Any) -> Any:
            said.append(named.get("trust_remote_code"))
            return _load(*given, **named)

        monkeypatch.setattr(loader, "from_pretrained", noting)
    from rankwise.cli.config_file import config_from_dict

    content = tiny.config(ground / "model", str(ground / "rows.jsonl"), ground / "other", method=tiny.LORA)
    make_job(config_from_dict(content))
    assert len(said) >= 3 and set(said) == {False}
