"""Every bad input gets one clear line on stderr and exit status 2, and leaves nothing behind."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
)

import rankwise as rw
import tiny
from rankwise import cli
from rankwise.cli import main

Model = Callable[[str], Path]
ROW = b'{"text": "Rain.", "label": "a"}\n'


@dataclass
class Ground:
    """A folder with a good configuration in it, to be spoilt."""

    folder: Path
    content: dict[str, Any]

    @property
    def output(self) -> Path:
        return self.folder / "run"

    def fails(self, capsys: pytest.CaptureFixture[str], *options: str) -> str:
        """Run it; the one line that it says. Nothing is written anywhere."""
        if "run.yaml" not in {entry.name for entry in self.folder.iterdir()}:
            tiny.write_config(self.folder / "run.yaml", self.content)
        before = snapshot(self.folder)
        capsys.readouterr()  # what transformers says when a model is saved is none of the run's
        status = main(["train", str(self.folder / "run.yaml"), *options])
        said = capsys.readouterr()
        assert status == 2 and said.out == ""
        assert snapshot(self.folder) == before
        assert said.err.startswith("rankwise train: ") and said.err.count("\n") == 1
        assert "Traceback" not in said.err
        return said.err

    def write(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return str(self.folder / name)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture
def ground(model: Model, topics: str, tmp_path: Path) -> Ground:
    return Ground(tmp_path, tiny.config(model("bert"), topics, tmp_path / "run"))


# settings: (where, what it is set to, what the message says)

METHOD: list[tuple[dict[str, Any], list[str]]] = [
    ({"targets": ["qkv"]}, ["'qkv' matches no linear layer", "['dense', 'key', 'query', 'value']", "rankwise inspect"]),
    ({"targets": ".*crossattention.*"}, ["matches no linear layer", "all-linear"]),
    ({"exclude": "all-linear"}, ["leaves none of the layers"]),
    ({"also_train": ["scorer"]}, ["also_train='scorer' is no module", "classifier"]),
    ({"target_rank": 4}, ["target_rank=4 must be between 1 and rank=3", "lower target_rank"]),
    ({"rank": 100}, ["rank=100 is above the largest possible rank 32 of bert.encoder", "Lower the rank"]),
    ({"rank": -2}, ["rank=-2"]),
    ({"rank": "abc"}, ["method.rank=abc is not possible; method.rank takes a whole number."]),
    ({"rank": 2.5}, ["method.rank=2.5", "takes a whole number"]),
    ({"rnak": 4}, ["unknown key 'method.rnak'", "'target_rank'", "Did you mean 'rank'?"]),
    ({"targets": 5}, ["method.targets=5 is not possible; method.targets takes text or a list of text."]),
    ({"rank_pattern": {"query": "x"}}, ["method.rank_pattern", "from text to a whole number"]),
    (
        {"rank_pattern": {"qeury": 2}},
        ["rank_pattern names 'qeury', which is none of the 13 adapted layers", "Did you mean 'query'?"],
    ),
    (
        {"penalty": "mean"},
        ["method.penalty=mean", "one of ['mean_norm', 'sum_of_squares']", "Did you mean 'mean_norm'?"],
    ),
    ({"warmup": 4, "cooldown": 4}, ["warmup=4 + cooldown=4 leave no step of total_steps=8", "or train longer"]),
    ({"warmup": "1 epoch", "cooldown": 1}, ["warmup=8 + cooldown=1 leave no step of total_steps=8"]),
    ({"every": 0}, ["every=0"]),
    ({"warmup": 1.5}, ["warmup=1.5 is a fraction of the run", "Write steps (100)"]),
    ({"warmup": "1 epch"}, ["warmup='1 epch' is no span", "'1 epoch'"]),
    ({"cooldown": -3}, ["cooldown=-3", "Write steps (100)"]),
    ({"budget": 400}, ["budget=400 must be between 1 and the 39 ranks", "Lower budget, or raise rank."]),
    ({"name": "adalor"}, ["unknown method 'adalor'", "known are ['adalora', ", "Did you mean 'adalora'?"]),
]


@pytest.mark.parametrize(("settings", "says"), METHOD, ids=lambda part: str(part)[:40])
def test_method(ground: Ground, capsys: Any, settings: dict[str, Any], says: list[str]) -> None:
    ground.content["method"] |= settings
    told = ground.fails(capsys)
    assert all(part in told for part in says), told


FIELDS: list[tuple[str, Any, list[str]]] = [
    ("trainng", {}, ["unknown key 'trainng'", "'init_from'", "Did you mean 'training'?"]),
    ("training.learning_rte", 1, ["unknown key 'training.learning_rte'", "Did you mean 'learning_rate'?"]),
    ("data.txt", "x", ["unknown key 'data.txt'", "Did you mean 'text'?"]),
    ("generation.beems", 2, ["unknown key 'generation.beems'", "Did you mean 'beams'?"]),
    ("training.steps", "five", ["training.steps=five is not possible; training.steps takes a whole number or null."]),
    ("training.steps", [1], ["training.steps=[1]", "takes a whole number or null"]),
    ("training.learning_rate", "fast", ["training.learning_rate=fast", "takes a number"]),
    ("training.load_best", "perhaps", ["training.load_best=perhaps", "takes true or false"]),
    ("training.scheduler", "cosin", ["one of ['linear', 'cosine', 'constant_with_warmup']", "Did you mean 'cosine'?"]),
    ("training.evaluate_every", "epochs", ["a whole number or one of ['epoch', 'never']", "Did you mean 'epoch'?"]),
    ("model", None, ["model is missing", "--model"]),
    ("output", None, ["output is missing", "--output"]),
    ("method", None, ["method=None must be a mapping with a name", "{name: adalora, rank: 12}"]),
    ("method", {"rank": 3}, ["must be a mapping with a name"]),
    ("data", {}, ["data.train is missing"]),
    ("data", 5, ["data=5 is not possible; data takes a mapping of fields"]),
    ("training", "short", ["training='short' is not possible"]),
    ("training.steps", -1, ["training.steps=-1"]),
    ("training.steps", 0, ["training.steps=0"]),
    ("training.epochs", -1.0, ["training.epochs=-1.0"]),
    ("training.batch_size", 0, ["training.batch_size=0", "1 or more"]),
    ("training.learning_rate", -0.1, ["training.learning_rate=-0.1", "0 or more"]),
    ("training.learning_rate", float("inf"), ["training.learning_rate"]),
    ("training.head_learning_rate", -1.0, ["training.head_learning_rate=-1.0"]),
    ("training.weight_decay", -1.0, ["training.weight_decay=-1.0"]),
    ("training.clip", -1.0, ["training.clip=-1.0"]),
    ("training.warmup", -0.5, ["training.warmup=-0.5"]),
    ("training.gradient_accumulation", -2, ["training.gradient_accumulation=-2"]),
    ("training.evaluate_every", -1, ["training.evaluate_every=-1"]),
    ("training.save_every", 0, ["training.save_every=0"]),
    ("training.keep_checkpoints", 0, ["training.keep_checkpoints=0"]),
    ("training.log_every", 0, ["training.log_every=0"]),
    ("training.seed", -1, ["training.seed=-1"]),
    ("training.seed", 2**32, ["training.seed=4294967296 is too large"]),
    ("training.load_best", True, ["evaluate_every='epoch' and save_every=4 do not meet"]),
    ("generation.rows", -1, ["generation.rows=-1"]),
    ("generation.max_new_tokens", 0, ["generation.max_new_tokens=0"]),
    ("generation.beams", 0, ["generation.beams=0"]),
    ("data.max_length", -3, ["data.max_length=-3 is not possible; it must be a number, 4 or more."]),
    ("data.max_length", 4096, ["max_length=4096 exceeds the 128 positions of this bert", "at most 128"]),
    ("data.seed", -1, ["data.seed=-1"]),
    ("task", "clasification", ["unknown task 'clasification'", "Did you mean 'classification'?"]),
    ("task", "seq2seq", ["a bert model has no head for task 'seq2seq'", "'classification'"]),
    ("task", "span-qa", ["needs a column for 'context'", "Name it with"]),
    ("data.label", "topic", ["has no column 'topic' (`label:`); its columns are ['text', 'label']"]),
    ("model", "./no/such/folder", ["there is no folder no/such/folder", "Give a hub id or a folder"]),
    ("model", "nobody/nothing", ["model='nobody/nothing' cannot be loaded"]),
    ("init_from", "no/adapter", ["no/adapter is no rankwise adapter: it has no rankwise.json"]),
    ("data.train", "no/rows.jsonl", ["no/rows.jsonl does not exist, and neither does its folder"]),
    ("data.validation", "rows.csv", ["rows.csv does not exist; its folder holds no data files."]),
]


@pytest.mark.parametrize(("where", "value", "says"), FIELDS, ids=lambda part: str(part)[:40])
def test_field(ground: Ground, capsys: Any, where: str, value: Any, says: list[str]) -> None:
    section, _, key = where.rpartition(".")
    inside = ground.content.setdefault(section, {}) if section else ground.content
    inside[key] = value
    told = ground.fails(capsys)
    assert all(part in told for part in says), told


OPTIONS: list[tuple[list[str], list[str]]] = [
    (["--training.steps=five"], ["training.steps=five is not possible", "a whole number or null"]),
    (["--method.rank=abc"], ["method.rank=abc is not possible; method.rank takes a whole number."]),
    (["--method.rnak", "4"], ["'method.rnak'", "Did you mean 'rank'?"]),
    (["--method", "loar"], ["unknown method 'loar'", "Did you mean 'lora'?"]),
    (["--method", "adalora/magnitde"], ["known are ['adalora/magnitude', ", "Did you mean 'adalora/magnitude'?"]),
    (["--method=lora", "--method.target_rank=2"], ["'method.target_rank'", "known here are ['rank'"]),
    (["--learning_rate=1"], ["unknown option --learning_rate", "Did you mean '--training.learning_rate'?"]),
    (["--training.learning_rat=1"], ["unknown option --training.learning_rat", "'--training.learning_rate'"]),
    (["--training.lr=1"], ["unknown option --training.lr", "training has ['learning_rate'"]),
    (["--data.trian", "x"], ["Did you mean '--data.train'?"]),
    (["--bogus"], ["unknown option --bogus.", "`rankwise train --help` lists all"]),
    (["--training.steps"], ["--training.steps needs a value."]),
    (["--config", "no.yaml"], ["config file 'no.yaml' cannot be read: No such file"]),
    (["another.yaml"], ["unexpected argument 'another.yaml'", "--help"]),
]


@pytest.mark.parametrize(("options", "says"), OPTIONS, ids=lambda part: str(part)[:40])
def test_options(ground: Ground, capsys: Any, options: list[str], says: list[str]) -> None:
    told = ground.fails(capsys, *options)
    assert all(part in told for part in says), told


COMMANDS: list[tuple[list[str], list[str]]] = [
    (["trian"], ["unknown command 'trian'. Did you mean 'train'?", "usage: rankwise COMMAND"]),
    (["train", "no.yaml"], ["rankwise train: config file 'no.yaml' cannot be read: No such file"]),
    (["evaluate"], ["rankwise evaluate: run is missing", "--help"]),
    (["evaluate", "no/run"], ["no/run is no finished run: it has no config.yaml"]),
    (["evaluate", "no/run", "--fast"], ["unknown option --fast"]),
    (["export", "a", "b", "--rank", "abc"], ["rank=abc is not possible; rank takes a whole number."]),
    (["export", "a", "b", "--layout", "portabel"], ["one of ['portable', 'compact']", "Did you mean 'portable'?"]),
    (["verify", "a", "--engines", "vllm"], ["engines=vllm is not possible; engines takes a list of text."]),
    (["compare", "--workers", "x"], ["workers=x is not possible; workers takes a whole number."]),
    (["convert", "a"], ["out is missing", "--help"]),
    (["convert"], ["source, out are missing"]),
    (["train", "--resume"], ["model, method, data.train, output are missing", "give --model, --method, --data.train"]),
    (["train", "-x"], ["unknown option -x"]),
    (["report", "a", "-o"], ["-o/--output needs a value."]),
    (["inspect", "no/model"], ["'no/model' is neither a run, an adapter nor a model"]),
    (["demo", "--cusal"], ["unknown option --cusal", "Did you mean '--causal'?"]),
]


def test_a_package_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `pip install rankwise`, without its extra."""
    (tmp_path / "needs_more.py").write_text("from nowhere_to_be_found.functional import f")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "evaluate", ("needs_more", ""))
    assert main(["evaluate", "runs/x"]) == 2
    told = capsys.readouterr().err
    assert "evaluate needs the package nowhere_to_be_found, which is not installed" in told
    assert "pip install 'rankwise[train]', or '.[train]' in a checkout" in told.replace("`", "")


def test_control_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*given: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rankwise.cli.train.parse", stopped)
    assert main(["train", "run.yaml"]) == 130
    said = capsys.readouterr().err
    assert said == "rankwise train: interrupted. The same command with --resume goes on from the last checkpoint.\n"


@pytest.mark.parametrize(("arguments", "says"), COMMANDS, ids=lambda part: str(part)[:40])
def test_commands(capsys: pytest.CaptureFixture[str], arguments: list[str], says: list[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == "" and all(part in told.err for part in says), told.err


CONFIG_FILES: list[tuple[bytes, list[str]]] = [
    (b"model: x\n  method: [\n", ["run.yaml', line 2: not YAML"]),
    (b'model: "x\noutput: y\n', ["run.yaml', line 3: not YAML"]),
    (b"model: x\nmodel\n", ["run.yaml', line 3: not YAML"]),
    (b"", ["must hold a mapping of fields, not nothing"]),
    (b"- model\n", ["must hold a mapping of fields, not a list"]),
    (b"model: caf\xe9\n", ["run.yaml' cannot be read: it is not UTF-8 (byte 11)"]),
]


@pytest.mark.parametrize(("content", "says"), CONFIG_FILES, ids=lambda part: str(part)[:40])
def test_config_file(ground: Ground, capsys: Any, content: bytes, says: list[str]) -> None:
    ground.write("run.yaml", content)
    told = ground.fails(capsys)
    assert all(part in told for part in says), told


DATA: list[tuple[str, bytes, list[str]]] = [
    ("rows.jsonl", ROW + b"{'text': 1}\n", ["rows.jsonl, line 2: not JSON", "one object such as"]),
    ("rows.jsonl", ROW + b"\n" + b'["Rain."]\n', ["rows.jsonl, line 3: a JSON list, not an object"]),
    ("rows.jsonl", b"", ["rows.jsonl holds no rows"]),
    ("rows.csv", b"", ["rows.csv is empty"]),
    ("rows.json", b"[]", ["rows.json holds no rows"]),
    ("rows.jsonl", b'{"body": "Rain.", "topic": "a"}\n' * 2, ["the columns ['body', 'topic'] fit no task", "`text:`"]),
    ("rows.jsonl", ROW + b'{"text": "Sun."}\n', ["1 of 2 rows have no value in column 'label'", "row 2"]),
    ("rows.jsonl", ROW * 4, ["all training rows bear the label 'a'"]),
    ("rows.txt", ROW, ["unknown kind of data file '.txt'", ".jsonl"]),
]


@pytest.mark.parametrize(("name", "content", "says"), DATA, ids=lambda part: str(part)[:40])
def test_data_file(ground: Ground, capsys: Any, name: str, content: bytes, says: list[str]) -> None:
    path = ground.write(name, content)
    ground.content["data"] = {"train": path, "validation": path, "max_length": 48}
    told = ground.fails(capsys)
    assert all(part in told for part in says), told


def test_labels_outside_the_set_of_training(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    ground.content["data"]["validation"] = ground.write("held.jsonl", ROW)
    told = ground.fails(capsys)
    assert "validation split has labels outside the set seen in training: 'a' (1 rows)" in told
    assert "'harbour', 'kitchen'" in told


def test_no_rows_to_hold_out(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    del ground.content["data"]["validation"]
    ground.content["data"]["train"] = ground.write("few.jsonl", ROW * 3)
    assert "validation_fraction=0.1 of 3 rows is 0 rows" in ground.fails(capsys)


# models


def test_a_cut_model_file(ground: Ground, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    ground.content["model"] = str(shutil.copytree(model("bert"), ground.folder / "cut"))
    weights = ground.folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded" in ground.fails(capsys)
    weights.unlink()
    assert "no file named model.safetensors" in ground.fails(capsys)


def test_a_model_without_tokenizer(ground: Ground, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers would make one that knows no word, and training would see nothing but unknown words."""
    ignored = shutil.ignore_patterns("token*")
    ground.content["model"] = str(shutil.copytree(model("bert"), ground.folder / "mute", ignore=ignored))
    assert "brings no tokenizer" in ground.fails(capsys)


def test_a_head_of_other_classes(ground: Ground, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    config = BertConfig.from_pretrained(model("bert"), num_labels=5)
    folder = shutil.copytree(model("bert"), ground.folder / "five")
    BertForSequenceClassification(config).save_pretrained(folder)
    ground.content["model"] = str(folder)
    told = ground.fails(capsys)
    assert "does not fit" in told and "num_labels=2" in told and "fine-tuned for other classes" in told


def test_a_model_without_gradient_checkpointing(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers would say so when the run folder has been made."""
    folder = shutil.copytree(ground.content["model"], ground.folder / "mpnet")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    MPNetModel(MPNetConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    ground.content |= {"model": str(folder), "method": "lora"}
    ground.content["training"]["gradient_checkpointing"] = True
    told = ground.fails(capsys)
    assert "MPNetForSequenceClassification has no gradient checkpointing" in told


def test_a_causal_model_for_messages_needs_a_template(
    ground: Ground, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model("llama"), ground.folder / "llama")
    (folder / "chat_template.jinja").unlink()
    path = tiny.write_rows(ground.folder / "rows.jsonl", tiny.message_rows(4))
    ground.content |= {"model": str(folder), "data": {"train": path, "validation": path}}
    assert "messages need a chat template" in ground.fails(capsys)


# outputs


def test_an_output_that_holds_a_run(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    ground.output.mkdir()
    (ground.output / "config.yaml").write_text("model: x\n")
    told = ground.fails(capsys)
    assert f"{ground.output} holds a run already" in told and "another output" in told


def test_an_output_that_is_a_file(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    ground.output.write_text("notes")
    assert "is a file, not a folder" in ground.fails(capsys)


# adapters


@pytest.fixture(scope="module")
def adapter(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved LoRA adapter of the tiny BERT with two classes."""
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    rw.adapt(classifier(model), rw.LoRA(rank=3)).save(folder)
    return folder


def classifier(model: Model, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(3)
    made: PreTrainedModel = BertForSequenceClassification(BertConfig.from_pretrained(model("bert"), **settings))
    return made


@pytest.fixture
def unchanged() -> Iterator[Callable[[nn.Module], None]]:
    """unchanged(model) notes the model; afterwards it has the same modules, weights and flags."""
    noted: list[tuple[nn.Module, dict[str, Any], dict[str, Tensor]]] = []

    def note(model: nn.Module) -> None:
        modules = {n: (type(m), [p.requires_grad for p in m.parameters()]) for n, m in model.named_modules()}
        noted.append((model, modules, {n: t.clone() for n, t in model.state_dict().items()}))

    yield note
    assert noted
    for model, modules, tensors in noted:
        assert modules == {n: (type(m), [p.requires_grad for p in m.parameters()]) for n, m in model.named_modules()}
        after = model.state_dict()
        assert after.keys() == tensors.keys()
        assert all(torch.equal(after[n], tensors[n]) for n in tensors)


def test_an_adapter_of_another_architecture(adapter: Path, model: Model, unchanged: Any) -> None:
    other = tiny.llama(100)
    unchanged(other)
    with pytest.raises(rw.FolderError, match=r"another architecture.* no linear layer 'bert.encoder.layer.0.attention"):
        rw.load(other, adapter)


BERTS: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 1}, r"no linear layer 'bert.encoder.layer.1.attention.self.query'"),
    ({"intermediate_size": 40}, r"layer.0.intermediate.dense is \[40, 32\], saved was \[48, 32\]"),
    ({"num_labels": 4}, r"another head: classifier.weight is \[4, 32\], saved was \[2, 32\]. Check num_labels"),
]


@pytest.mark.parametrize(("settings", "says"), BERTS)
def test_an_adapter_of_another_bert(
    adapter: Path, model: Model, unchanged: Any, settings: dict[str, Any], says: str
) -> None:
    other = classifier(model, **settings)
    unchanged(other)
    with pytest.raises(rw.FolderError, match=says):
        rw.load(other, adapter)


def spoil_nan(folder: Path) -> None:
    tensors = load_file(folder / "adapter.safetensors")
    next(t for n, t in tensors.items() if n.endswith("::B"))[1, 1] = torch.nan
    save_file(tensors, folder / "adapter.safetensors")


def spoil_names(folder: Path) -> None:
    tensors = load_file(folder / "adapter.safetensors")
    del tensors["bert.pooler.dense::A"]
    save_file(tensors, folder / "adapter.safetensors")


def spoil_cut(folder: Path) -> None:
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:500])


def spoil_description(folder: Path, **changes: Any) -> None:
    file = folder / "rankwise.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "nan": (spoil_nan, r"1 values that are NaN or infinite in '.*::B'. .*take an earlier checkpoint"),
    "missing tensor": (spoil_names, r"missing \['bert.pooler.dense::A'\]"),
    "cut": (spoil_cut, "cannot be read as safetensors"),
    "no tensors": (lambda f: (f / "adapter.safetensors").unlink(), r"adapter\.safetensors"),
    "no description": (lambda f: (f / "rankwise.json").unlink(), "has no rankwise.json"),
    "no json": (lambda f: (f / "rankwise.json").write_text("{"), r"rankwise\.json is not .* rankwise writes"),
    "format": (lambda f: spoil_description(f, format=99), "has format 99"),
    "method": (lambda f: spoil_description(f, method={"name": "lora", "rnk": 3}), "Did you mean 'rank'"),
    "unknown method": (lambda f: spoil_description(f, method={"name": "loro"}), "Did you mean 'lora'"),
    "layers": (lambda f: spoil_description(f, layers=[1]), "rankwise.json"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_adapter(how: str, adapter: Path, model: Model, tmp_path: Path, unchanged: Any) -> None:
    spoil, says = SPOILT[how]
    folder = Path(shutil.copytree(adapter, tmp_path / "spoilt"))
    spoil(folder)
    bert = classifier(model)
    unchanged(bert)
    with pytest.raises(rw.RankwiseError, match=says):
        rw.load(bert, folder)


@pytest.mark.parametrize("how", ["nan", "cut", "missing tensor"])
def test_a_run_does_not_start_from_a_spoilt_adapter(
    how: str, adapter: Path, ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(adapter, ground.folder / "spoilt"))
    SPOILT[how][0](folder)
    ground.content |= {"method": tiny.LORA, "init_from": str(folder)}
    assert "spoilt" in ground.fails(capsys)


STARTS: list[tuple[dict[str, Any], str]] = [
    ({"name": "aflora", "rank": 3}, "holds a lora adapter; this run uses aflora"),
    ({"name": "lora", "rank": 2}, "3 ranks saved, and at most 2 are possible here"),
    ({"name": "lora", "rank": 4}, "is [3, 32], not [4, 32]"),
    ({"name": "lora", "rank": 3, "targets": "attention"}, "is adapted in the folder, not the model"),
]


@pytest.mark.parametrize(("method", "says"), STARTS)
def test_a_run_does_not_start_from_another_adapter(
    method: dict[str, Any], says: str, adapter: Path, ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    ground.content |= {"method": method, "init_from": str(adapter)}
    assert says in ground.fails(capsys)


# moments


def test_adapting_twice(model: Model, unchanged: Any) -> None:
    bert = classifier(model)
    rw.adapt(bert, rw.LoRA(rank=2))
    unchanged(bert)
    for method in (rw.LoRA(rank=2), rw.AFLoRA(rank=2)):
        with pytest.raises(rw.StateError, match=r"adapted already\. Undo, merge or reload it"):
            rw.adapt(bert, method)


def test_loading_into_an_adapted_model(adapter: Path, model: Model, unchanged: Any) -> None:
    bert = classifier(model)
    rw.adapt(bert, rw.LoRA(rank=2))
    unchanged(bert)
    with pytest.raises(rw.StateError, match="adapted already"):
        rw.load(bert, adapter)


def test_an_optimizer_from_before(model: Model, tmp_path: Path) -> None:
    bert = classifier(model)
    optimizer = torch.optim.AdamW(bert.parameters())
    adaptation = rw.adapt(bert, rw.LoRA(rank=2))
    with (
        pytest.raises(rw.StateError, match=r"not 26 of the adapters'. It was probably built before adapt\(\)"),
        adaptation.attached(optimizer, 5, history=tmp_path / "history.jsonl"),
    ):
        pass
    assert not (tmp_path / "history.jsonl").exists() and adaptation.attachment is None


def test_an_impossible_schedule_when_attached(model: Model, tmp_path: Path) -> None:
    adaptation = rw.adapt(classifier(model), rw.AdaLoRA(rank=3, target_rank=2, warmup=6, cooldown=6))
    optimizer = torch.optim.AdamW(adaptation.parameters())
    with (
        pytest.raises(rw.ScheduleError, match=r"warmup=6 \+ cooldown=6 leave no step of total_steps=12"),
        adaptation.attached(optimizer, 12, history=tmp_path / "history.jsonl"),
    ):
        pass
    assert not (tmp_path / "history.jsonl").exists()
    with adaptation.attached(optimizer, 20):
        pass
