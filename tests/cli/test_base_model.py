"""The base model of a saved adapter: a run says where it comes from, names and shapes tell the rest."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, BertForSequenceClassification

import rankwise as rw
import tiny
from rankwise.cli import main
from rankwise.cli.base_model import Base, Needs, adapter_and_base, load, weightless
from rankwise.io.folder import read


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that says of its model what one on the hub may have: a revision, and code of its own."""
    folder = tmp_path_factory.mktemp("base-model")
    base = tiny.save_model("bert", folder / "base")
    rows = tiny.write_rows(folder / "rows.jsonl", tiny.topic_rows())
    assert tiny.train(folder, tiny.config(base, rows, folder / "run", method=tiny.LORA)) == 0
    config = folder / "run" / "config.yaml"
    text = config.read_text().replace("revision: null", "revision: v1")
    config.write_text(text.replace("trust_remote_code: false", "trust_remote_code: true"))
    return folder / "run"


@pytest.mark.parametrize("command", ["export", "merge"])
def test_code_of_a_model_is_run_for_who_trusts_it(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(run), str(tmp_path / "out")]) == 2
    assert "say so with --trust_remote_code" in capsys.readouterr().err
    assert main([command, str(run), str(tmp_path / "out"), "--trust_remote_code"]) == 0


@pytest.mark.parametrize("options", [["export", "RUN", "OUT", "--verify"], ["merge", "RUN", "OUT"]], ids=lambda o: o[0])
def test_everything_is_read_at_the_revision_of_the_run(
    options: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    for loader in (AutoConfig, AutoModelForSequenceClassification):
        original = loader.from_pretrained

        def noting(name: Any, *given: Any, _load: Any = original, **named: Any) -> Any:
            if Path(name) == run.parent / "base":
                said.append((named.get("revision"), named.get("trust_remote_code")))
            return _load(name, *given, **named)

        monkeypatch.setattr(loader, "from_pretrained", noting)
    places = {"RUN": str(run), "OUT": str(tmp_path / "out")}
    assert main([*(places.get(word, word) for word in options), "--trust_remote_code"]) == 0
    assert len(said) >= 2 and set(said) == {("v1", True)}


def test_another_base_is_of_no_revision(run: Path) -> None:
    adapter, base = adapter_and_base(str(run), "owner/other", trusts=True)
    assert adapter == run / "adapter"
    assert base == Base("owner/other", None, True, "classification", ["harbour", "kitchen"])
    assert adapter_and_base(str(adapter), None, trusts=False)[1].name == str(run.parent / "base")


def test_a_folder_of_peft_s_says_the_revision_of_its_base(run: Path, tmp_path: Path) -> None:
    adaptation = rw.load(BertForSequenceClassification.from_pretrained(run.parent / "base"), run / "adapter")
    adaptation.export(tmp_path / "lora", base_model="owner/name", revision="v1")
    assert adapter_and_base(str(tmp_path / "lora"), None, trusts=False)[1] == Base("owner/name", "v1")
    assert adapter_and_base(str(tmp_path / "lora"), "owner/other", trusts=False)[1] == Base("owner/other")


def test_the_head_is_told_by_task_and_labels_or_by_shapes(run: Path) -> None:
    name = str(run.parent / "base")
    named = load(Base(name, task="classification", labels=["a", "b", "c"]), Needs({}, {}), torch.float32)
    assert named.config.id2label == {0: "a", 1: "b", 2: "c"} and named.config.label2id["c"] == 2
    regression = load(Base(name, task="regression"), Needs({}, {}), torch.float32)
    assert (regression.config.num_labels, regression.config.problem_type) == (1, "regression")
    shaped = weightless(Base(name), Needs({}, {"classifier.weight": [5, 32]}))
    assert isinstance(shaped, BertForSequenceClassification) and shaped.config.num_labels == 5


def test_what_no_model_of_that_kind_has_is_named(run: Path) -> None:
    name, needs = str(run.parent / "base"), Needs.of_adapter(read(run / "adapter"))
    with pytest.raises(rw.FolderError, match=r"has no linear layer 'model\.layers\.0'"):
        weightless(Base(name), Needs({**needs.layers, "model.layers.0": [4, 4]}, {}))
