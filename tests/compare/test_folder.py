"""The memory of a comparison: whole lines, one writer, and no mixing of what cannot be compared."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import entry, finals, spec

from rankwise.compare.folder import open_folder, read_runs, runs_file
from rankwise.errors import ConfigError, FolderError
from rankwise.io.untrusted_yaml import read_mapping

LINES = list(finals(entry("sst2", "lora", None), 0.8, 0.9).values())


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    with runs_file(tmp_path) as runs:
        for line in LINES:
            runs.append(line)
    assert list(read_runs(tmp_path).values()) == LINES


def test_nan_becomes_null(tmp_path: Path) -> None:
    with runs_file(tmp_path) as runs:
        runs.append({**LINES[0], "score": float("nan")})
        assert runs.records[LINES[0]["cell"]]["score"] is None
    assert read_runs(tmp_path)[LINES[0]["cell"]]["score"] is None


@pytest.mark.parametrize("torn", ['{"cell": "sst2/lo', "{", "\x00"])
def test_a_line_that_a_crash_cut_short_is_taken_away(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n" + torn)
    assert list(read_runs(tmp_path)) == [LINES[0]["cell"]]
    with runs_file(tmp_path) as runs:
        runs.append(LINES[1])
    assert path.read_text() == json.dumps(LINES[0]) + "\n" + json.dumps(LINES[1]) + "\n"


@pytest.mark.parametrize("line", ["[1]", '{"cell": "x"}', "no JSON", '{"score": NaN}'])
def test_a_line_of_somebody_else_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text(json.dumps(LINES[0]) + "\n" + line + "\n")
    with pytest.raises(FolderError, match="line 2"):
        read_runs(tmp_path)


def test_there_is_one_writer(tmp_path: Path) -> None:
    with runs_file(tmp_path), pytest.raises(FolderError, match="another comparison is running"):
        with runs_file(tmp_path):
            pass
    with runs_file(tmp_path) as runs:
        assert runs.records == {}


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"base": {"model": "other"}}, r"base.model='m', and is to go on with 'other'"),
    ({"base": {"model": "m", "training": {"steps": 4}}}, r"base.training.steps=None"),
    ({"tasks": {"sst2": {"metric": "f1"}, "rte": {}}}, r"tasks.sst2=\{\}"),
    ({"methods": {"lora": {"rank": 3}, "adalora": {}}}, r"methods.lora"),
    ({"counted": "start"}, r"counted='end', and is to go on with 'start'"),
    ({"alpha_over_rank": 2.0}, "alpha_over_rank=1.0"),
]


@pytest.mark.parametrize(("change", "says"), CHANGES)
def test_a_change_under_which_runs_would_be_others_is_refused(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    open_folder(folder, spec().as_dict())
    before = (folder / "spec.yaml").read_bytes()
    with pytest.raises(ConfigError, match=says):
        open_folder(folder, spec(**change).as_dict())
    assert (folder / "spec.yaml").read_bytes() == before


ADDITIONS: list[dict[str, Any]] = [
    {"seeds": 5},
    {"tasks": {"sst2": {}, "rte": {}, "stsb": {}}},
    {"methods": {"lora": {}, "adalora": {}, "bitfit": {}}, "baseline": "bitfit"},
    {"budgets": ["0.3M"]},
    {"notes": ["said later"]},
]


@pytest.mark.parametrize("change", ADDITIONS)
def test_additions_are_taken(change: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    open_folder(folder, spec().as_dict())
    open_folder(folder, spec(**change).as_dict())
    assert read_mapping(folder / "spec.yaml", folder) == spec(**change).as_dict()


def test_what_is_left_out_for_once_is_not_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    open_folder(folder, spec().as_dict())
    open_folder(folder, spec(tasks={"rte": {}}).as_dict())
    with pytest.raises(ConfigError, match=r"tasks.sst2"):
        open_folder(folder, spec(tasks={"sst2": {"metric": "f1"}}).as_dict())


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FolderError, match="holds something that is no comparison"):
        open_folder(tmp_path, spec().as_dict())
