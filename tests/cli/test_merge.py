"""rankwise merge: the folder that it writes is what the adapter made of the base, as stock transformers reads it."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import rankwise as rw
import tiny
from rankwise.cli import main


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.fixture
def causal(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny Llama's folder, and one with an adapter of it."""
    base = tiny.save_model("llama", tmp_path / "base")
    adaptation = rw.adapt(AutoModelForCausalLM.from_pretrained(base), rw.LoRA(rank=3))
    for adapter in adaptation.adapters.values():
        torch.nn.init.normal_(adapter.B, std=3e-4)
    adaptation.save(tmp_path / "adapter")
    return base, tmp_path / "adapter"


def test_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A classifier: the head, its classes and their names come from the run."""
    base = tiny.save_model("bert", tmp_path / "base")
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.topic_rows())
    assert tiny.train(tmp_path, tiny.config(base, rows, tmp_path / "run")) == 0
    Path(rows).unlink()  # a merge needs no data
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "run"), str(tmp_path / "merged")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert model.config.id2label == {0: "harbour", 1: "kitchen"}
    adapted = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    rw.load(adapted, tmp_path / "run" / "adapter")
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")("peels six onions", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(logits(model, ids), logits(adapted, ids), rtol=1e-5, atol=1e-5)
    assert re.search(r"relative error of 13 merged layers: median \S+e-0\d", told)
    assert re.search(r"end to end, as read from .*merged: largest difference of a logit \S+e-0[678]", told)
    assert "same first choice in 100.00% of 4 distributions" in told
    assert "warning" not in told


def test_an_adapter_in_shards_on_own_prompts(causal: tuple[Path, Path], tmp_path: Path, capsys):
    base, adapter = causal
    (tmp_path / "prompts.txt").write_text("A quiet clerk stirs\n\nNobody bakes rye bread\n")
    options = ["--max_shard_size", "100KB", "--prompts", str(tmp_path / "prompts.txt")]
    assert main(["merge", str(adapter), str(tmp_path / "merged"), "--model", str(base), *options]) == 0
    files = list((tmp_path / "merged").glob("model-*-of-*.safetensors"))
    assert len(files) > 2 and all(f.stat().st_size < 120_000 for f in files)
    told = capsys.readouterr().out
    assert f"in {len(files)} files" in told
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens = sum(len(tokenizer(t)["input_ids"]) for t in ("A quiet clerk stirs", "Nobody bakes rye bread"))
    assert f"of {tokens} distributions" in told
    adapted = AutoModelForCausalLM.from_pretrained(base)
    rw.load(adapted, adapter)
    ids = tokenizer("Our neighbour Ilse", return_tensors="pt")["input_ids"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, ids), logits(adapted, ids), rtol=1e-5, atol=1e-5)


def test_the_base_is_found_by_what_the_adapter_says(causal: tuple[Path, Path], tmp_path: Path):
    assert main(["merge", str(causal[1]), str(tmp_path / "merged")]) == 0


def test_another_type_is_rounded_to_once_and_the_loss_is_told(causal: tuple[Path, Path], tmp_path: Path, capsys):
    base, adapter = causal
    model = AutoModelForCausalLM.from_pretrained(base)
    expected = rw.load(model, adapter).merge()
    assert main(["merge", str(adapter), str(tmp_path / "merged"), "--dtype", "bfloat16"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16
    for name, parameter in merged.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name).bfloat16())
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"warning: rounding loses more than 10% of the update in \d+ of 14 layers", told)


def test_what_cannot_be_merged_is_refused_before_anything_is_written(causal: tuple[Path, Path], tmp_path: Path, capsys):
    _, adapter = causal
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    (tmp_path / "blank.txt").write_text("\n\n")
    other = tiny.save_model("gpt2", tmp_path / "other")
    out = str(tmp_path / "out")
    for arguments, message in (
        ([str(adapter), str(tmp_path / "taken")], "holds something already"),
        ([str(adapter), out, "--prompts", str(tmp_path / "blank.txt")], "holds no text"),
        ([str(adapter), out, "--prompts", str(tmp_path / "none.txt")], "cannot be read"),
        ([str(other), out], "neither a run nor an adapter"),
        ([str(adapter), out, "--model", str(other)], "made for another model"),
        ([str(adapter), out, "--model", str(tmp_path / "nowhere")], "is no model"),
        ([str(adapter), out, "--dtype", "int8"], "dtype"),
    ):
        assert main(["merge", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not Path(out).exists() and not list(tmp_path.glob(".out*"))
