"""The papers' experiments: what the command line reads, planned on a few blocks of each model; and WikiSQL's files."""

import json
import runpy
from functools import cache
from pathlib import Path

import pytest
from torch import nn
from transformers import AutoConfig

from rankwise.cli.spec_file import Asked, parse
from rankwise.compare.entries import Contender
from rankwise.compare.sizing import Sizer
from rankwise.compare.spec import Published, label_of
from rankwise.errors import ConfigError
from rankwise.heads import TASKS
from rankwise.methods.adalora import AdaLoRA
from rankwise.planning.weightless import model_of
from rankwise.train.config import GenerationConfig
from rankwise.train.scorers import SCORERS, score_names

PAPERS = Path(__file__).parents[2] / "benchmarks" / "papers"
SPECS = [pytest.param(path, id=path.stem) for path in sorted(PAPERS.glob("*.yaml"))]
ROWS = 10_000  # of a data set that is not here
RATIO = "× "  # a published number that is no score, such as "× LoRA's parameters"

FAMILIES = {
    "microsoft/deberta-v3-base": "deberta-v2",
    "microsoft/deberta-v2-xxlarge": "deberta-v2",
    "FacebookAI/roberta-base": "roberta",
    "FacebookAI/roberta-large": "roberta",
    "facebook/bart-large": "bart",
    "openai-community/gpt2-medium": "gpt2",
    "openai-community/gpt2-large": "gpt2",
    "openai-community/gpt2-xl": "gpt2",
    "huggyllama/llama-7b": "llama",
    "sentence-transformers/all-MiniLM-L6-v2": "bert",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "llama",
}


@cache
def read(path: Path) -> Asked:
    return parse([str(path)])


@cache
def few_blocks(family: str) -> nn.Module:
    """A backbone on the meta device, as wide as the family's are by default."""
    names = ("encoder_layers", "decoder_layers") if family == "bart" else ("num_hidden_layers",)
    blocks = 12 if family == "roberta" else 2  # AdapterDrop leaves eleven of them without an adapter
    return model_of(AutoConfig.for_model(family, **dict.fromkeys(names, blocks)), None, None)[0]


@pytest.mark.parametrize("path", SPECS)
def test_every_method_on_every_task_parses(path: Path) -> None:
    spec = read(path).spec
    assert len(read(path).contenders) == len(spec.tasks) * len(spec.methods)
    assert spec.output == f"runs/papers/{path.stem}"


@pytest.mark.parametrize("path", SPECS)
def test_every_method_can_be_put_into_its_model_for_the_length_of_its_runs(path: Path) -> None:
    """Targets, widths, prefixes and schedules fit; each kind of entry once."""
    seen = set()
    for contender in read(path).contenders:
        training = contender.config.training
        steps, per_epoch = training.length(ROWS)
        kind = (contender.config.model, repr(contender.config.method), steps)
        if kind not in seen:
            bare = few_blocks(FAMILIES[contender.config.model])
            sizer = Sizer(bare=bare, total_steps=steps, steps_per_epoch=per_epoch, counted=contender.counted)
            assert sizer.own(contender.config.method).parameters > 0
        seen.add(kind)


@pytest.mark.parametrize("path", SPECS)
def test_every_metric_and_every_published_number_is_one_of_a_run_here(path: Path) -> None:
    asked = read(path)
    for contender in asked.contenders:
        assert contender.metric is None or contender.metric in possible(contender)
    of_task = {contender.task: contender for contender in asked.contenders}
    budgets = {None, *map(label_of, asked.spec.budgets)}
    said = [key(number) for number in asked.spec.published]
    assert len(set(said)) == len(said)
    for number in asked.spec.published:
        assert number.method in asked.spec.methods and number.budget in budgets
        metric = number.metric or ""
        assert metric.startswith(RATIO) or metric in ("", *possible(of_task[number.task]))


def key(number: Published) -> tuple[str | None, ...]:
    return number.task, number.method, number.budget, number.metric, number.source


def possible(contender: Contender) -> set[str]:
    """The scores of any task that the rows may turn out to be."""
    generation: GenerationConfig = contender.config.generation
    return {name for task in TASKS for name in score_names(task, 2, generation)}


def test_a_readme_names_every_spec() -> None:
    told = (PAPERS / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in PAPERS.glob("*.yaml") if f"`{path.name}`" not in told] == []


ASKED = {
    "table_id": "1-2",
    "question": "How many schools?",
    "sql": {"sel": 1, "agg": 3, "conds": [[0, 0, "Butler CC (KS)"], [1, 1, 2013]]},
}
QUERIES = {
    True: ("Columns: Player, No.\nQuestion: How many schools?\nQuery:", "COUNT(No.)", "Player", "No."),
    False: ("Question: How many schools?\nQuery:", "COUNT(col1)", "col0", "col1"),
}


@pytest.mark.parametrize("tables", [True, False], ids=["tables", "no tables"])
def test_wikisql_becomes_prompts_and_queries(tables: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(ASKED) + "\n", encoding="utf-8")
        if tables:
            table = json.dumps({"id": "1-2", "header": ["Player", "No."]})
            (tmp_path / f"{name}.tables.jsonl").write_text(table + "\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["wikisql.py", str(tmp_path), str(tmp_path / "text")])
    runpy.run_path(str(PAPERS / "wikisql.py"), run_name="__main__")
    prompt, chosen, first, second = QUERIES[tables]
    for name in ("train", "validation"):
        row = json.loads((tmp_path / "text" / f"{name}.jsonl").read_text(encoding="utf-8"))
        query = f" SELECT {chosen} FROM table WHERE {first} = 'Butler CC (KS)' AND {second} > 2013"
        assert row == {"prompt": prompt, "completion": query}
        assert SCORERS["query"].scores([query.lower()], [[row["completion"]]]) == {"accuracy": 1.0}


SPEC = """
base: {model: a/model, data: {train: rows}, training: {epochs: 2, batch_size: 8}}
tasks: {one: {methods: %s}, two: {}}
methods: {adalora: {alpha: 16, learning_rates: [0.001], training: {warmup: 0.1}}}
output: runs/here
"""


def write_spec(folder: Path, of_task: str) -> str:
    path = folder / "spec.yaml"
    path.write_text(SPEC % of_task)
    return str(path)


def test_a_task_has_its_own_settings_of_a_method(tmp_path: Path) -> None:
    of_task = "{adalora: {orthogonality: 0.3, learning_rates: [0.002], training: {epochs: 5}}}"
    one, two = parse([write_spec(tmp_path, of_task)]).contenders
    assert (one.rates, two.rates) == ((0.002,), (0.001,))
    assert (one.config.training.epochs, two.config.training.epochs) == (5, 2)
    assert (one.config.training.warmup, one.config.training.batch_size) == (0.1, 8)  # of the method and of base
    assert one.config.method == AdaLoRA(alpha=16, orthogonality=0.3)
    assert two.config.method == AdaLoRA(alpha=16)


def test_settings_of_an_unknown_method_on_a_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'tasks\.one\.methods\.adalra'.*adalora"):
        parse([write_spec(tmp_path, "{adalra: {alpha: 16}}")])
