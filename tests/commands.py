"""Checks the commands that pages show, without running them."""

import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from rankwise.cli import COMMANDS

CONFIG = "model: m\nmethod: adalora\ndata: {train: rows.jsonl}\noutput: runs/x\n"
SPEC = "base: {model: m}\ntasks: {rte: {data: {train: rows.jsonl}}}\nmethods: {lora: {}}\noutput: runs/x\n"
ELSEWHERE = {"llama-cli", "llama-server", "vllm", "git", "cd"}  # not ours


class Reached(Exception):  # noqa: N818
    """The command line was parsed; there the check ends."""


def check(line: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail for an option, a make target, an extra or a file that does not exist."""
    words = shlex.split(line, comments=True)
    while re.match(r"[A-Z_]+=", words[0]):  # a variable of the environment
        words.pop(0)
    tool, *arguments = words
    tool = Path(tool).name
    if tool == "rankwise":
        check_rankwise(arguments, monkeypatch)
    elif tool == "make":
        targets = re.findall(r"^([\w-]+):", (root / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(arguments) <= set(targets), line
    elif tool == "pip":
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for extras in re.findall(r"\[([\w,]+)\]", line):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), line
    elif tool in ("python", "accelerate", "torchrun"):
        files = [argument for argument in arguments if argument.startswith(("benchmarks/", "examples/"))]
        assert files and all((root / file).is_file() for file in files), line
        if "rankwise" in arguments:
            check_rankwise(arguments[arguments.index("rankwise") + 1 :], monkeypatch)
    else:
        assert tool in ELSEWHERE, f"{line}: which tool is that?"


def check_rankwise(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse as the command itself does; config files that are named are made in the current folder."""
    name, *rest = arguments
    if name.startswith("-"):
        return
    module = import_module(COMMANDS[name][0])
    for parser in ("parse_arguments", "parse"):
        if parser in vars(module):
            monkeypatch.setattr(module, parser, reaching(vars(module)[parser]))
    for word in rest:
        if word.endswith(".yaml") and not word.startswith("-"):
            Path(word).write_text(SPEC if name == "compare" else CONFIG, encoding="utf-8")
    if "--help" in rest:
        assert module.run(rest) == 0
        return
    with pytest.raises(Reached):
        module.run(rest)


def reaching(parse: Any) -> Any:
    def parse_and_stop(*given: Any) -> Any:
        parse(*given)
        raise Reached

    return parse_and_stop
