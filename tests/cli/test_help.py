"""Every help page: complete, in a reader's words, with examples that parse."""

import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import commands
from rankwise.cli import COMMANDS, main
from rankwise.methods import METHODS
from rankwise.train.config import GenerationConfig, RunConfig, TrainingConfig
from rankwise.train.data_config import DataConfig

ROOT = Path(__file__).parents[2]
SECTIONS: dict[str, type] = {"training.": TrainingConfig, "data.": DataConfig, "generation.": GenerationConfig}
NOT_FOR_READERS = (
    "rankwise.methods",
    "CLASS_PATH",
    "configuration file",
    "Literal",
    "Union",
    "null,",
    "type:",
    "Epochs",
)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "--help"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_is_in_readers_words(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = told(capsys, command)
    assert f"usage: rankwise {command}" in page
    assert not [word for word in NOT_FOR_READERS if word in page]
    assert main([]) == 0 and command in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_its_examples_parse(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(capsys, command).partition("\nexamples:\n")[2].partition("\n\n")[0].splitlines()
    assert lines and any(shlex.split(line)[:2] == ["rankwise", command] for line in lines)
    monkeypatch.chdir(tmp_path)
    for line in lines:
        with monkeypatch.context() as patch:
            commands.check(line, ROOT, patch)


def test_help_names_every_field_and_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    page = told(capsys, "train")
    for prefix, cls in {"": RunConfig, **SECTIONS, **{f"method.{n}": c for n, c in METHODS.items()}}.items():
        where = "method." if prefix.startswith("method.") else prefix
        for each in fields(cls):
            if each.type in SECTIONS.values():
                continue
            start = page.find(f"--{where}{each.name} ")
            assert start >= 0, each.name
            entry = page[start:].partition("\n  --")[0]
            assert len(entry.partition("(")[0].split()) > 4, f"{each.name} has no help"


@pytest.mark.parametrize("method", METHODS)
def test_help_of_one_method(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All of its settings with their defaults, and no others."""
    page = told(capsys, "train", "--method", method)
    listed = {line.split()[0] for line in page.splitlines() if line.startswith("  --method.")}
    assert listed == {f"--method.{field.name}" for field in fields(METHODS[method])}


def test_a_setting_that_methods_share_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    page = told(capsys, "train")
    assert page.count("--method.also_train ") == page.count("--method.targets ") == 1
    assert page.count("--method.target_rank ") == 1 and page.count("--method.cooldown ") == 2, "AFLoRA's is another"
