"""rankwise export and verify, on runs and adapters as they lie on the disk."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import yaml
from transformers import BartForSequenceClassification

import rankwise as rw
import tiny
from contract.methods import BY_NAME as METHODS
from contract.models import BY_NAME as MODELS
from contract.runs import outputs, peft_reads, trained
from rankwise.cli import main
from rankwise.io import peft_format

LLAMA = MODELS["llama-gqa"]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A saved AdaLoRA, and beside it its base model."""
    return saved(tmp_path, "llama-gqa", "adalora")


def saved(folder: Path, architecture: str, method: str, **changes: object) -> Path:
    MODELS[architecture].build().save_pretrained(folder / "base")
    adaptation = trained(MODELS[architecture], replace(METHODS[method].method, **changes))
    adaptation.model.config._name_or_path = str(folder / "base")
    adaptation.save(folder / "adapter")
    return folder / "adapter"


def test_an_adapter_is_exported_without_its_base_s_weights(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, base = adapter.with_name("lora"), adapter.with_name("base")
    (base / "model.safetensors").rename(base / "gone")
    assert main(["export", str(adapter), str(out)]) == 0
    assert "portable LoRA of rank 8" in capsys.readouterr().out
    (base / "gone").rename(base / "model.safetensors")
    adapted = rw.load(LLAMA.build(), adapter).model
    got = outputs(peft_reads(LLAMA.build(), out), LLAMA.batch())
    torch.testing.assert_close(got, outputs(adapted, LLAMA.batch()), rtol=1e-5, atol=1e-5)
    assert main(["verify", str(out), "--model", str(base), "--against", str(adapter)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("read as meant") == 6


def test_the_files_are_those_of_the_loaded_model(adapter: Path) -> None:
    assert main(["export", str(adapter), str(adapter.with_name("a")), "--base-model", "owner/name"]) == 0
    rw.load(LLAMA.build(), adapter).export(adapter.with_name("b"), base_model="owner/name")
    for name in peft_format.FILES:
        assert (adapter.with_name("a") / name).read_bytes() == (adapter.with_name("b") / name).read_bytes()


def test_blocks_of_a_fused_weight_need_the_base_s_config_only(tmp_path: Path) -> None:
    adapter = saved(tmp_path, "gpt2", "lora", targets=["c_attn[q,v]", "c_fc"])
    assert main(["export", str(adapter), str(tmp_path / "lora"), "--verify"]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_exported_from_its_files(method: str, tmp_path: Path) -> None:
    adapter = saved(tmp_path, "llama-gqa", method)
    assert main(["export", str(adapter), str(tmp_path / "lora"), "--verify"]) == 0


def test_a_compact_folder_fails_the_check_for_every_engine(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(adapter.with_name("lora"))
    assert main(["export", str(adapter), out, "--layout", "compact", "--verify"]) == 1
    assert "MISREAD" in capsys.readouterr().out
    verify = ["verify", out, "--model", str(adapter.with_name("base"))]
    assert main([*verify, "--engines", "[peft, transformers, vllm]"]) == 0
    assert main([*verify, "--engines", "[sglang]"]) == 1  # who is named must accept it
    assert "refused" in capsys.readouterr().out


def test_a_run_with_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny.save_model("bert", tmp_path / "base")
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.topic_rows())
    assert tiny.train(tmp_path, tiny.config(base, rows, tmp_path / "run")) == 0
    run, out = str(tmp_path / "run"), str(tmp_path / "lora")
    assert main(["export", run, out, "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "classifier.weight, classifier.bias" in printed and "stayed behind" in printed
    assert main(["export", run, out, "--heads", "--verify"]) == 1  # SGLang and TGI would answer with another head
    printed = capsys.readouterr().out
    assert "vLLM and llama.cpp refuse" in printed and printed.count("MISREAD") == 2
    assert main(["verify", out, "--model", str(base), "--against", run, "--engines", "[peft, transformers]"]) == 0


def test_a_head_that_trained_in_part_leaves_with_the_rest_of_it(tmp_path: Path) -> None:
    base = MODELS["bert"].build()
    base.save_pretrained(tmp_path / "base")
    values = base.classifier.weight.detach().clone()
    rw.adapt(base, rw.LoRA(rank=2, also_train=["classifier.bias"])).save(tmp_path / "adapter")
    given = ["export", str(tmp_path / "adapter"), str(tmp_path / "lora"), "--heads"]
    assert main([*given, "--model", str(tmp_path / "base")]) == 0
    heads = peft_format.read(tmp_path / "lora").others()
    assert torch.equal(heads["base_model.model.classifier.weight"], values)


def test_a_classifier_with_a_decoder(tmp_path: Path) -> None:
    bart = BartForSequenceClassification(copy.deepcopy(MODELS["bart"].build().config))
    bart.save_pretrained(tmp_path / "base")
    bart.config._name_or_path = str(tmp_path / "base")
    rw.adapt(bart, rw.LoRA(rank=2)).save(tmp_path / "adapter")
    assert main(["export", str(tmp_path / "adapter"), str(tmp_path / "lora"), "--verify"]) == 0
    assert main(["verify", str(tmp_path / "lora"), "--model", str(tmp_path / "base")]) == 0


def test_a_folder_of_another_tool_is_verified_against_peft(adapter: Path) -> None:
    base = adapter.with_name("base")
    model = peft.get_peft_model(LLAMA.build(), peft.LoraConfig(target_modules=["q_proj"], use_rslora=True))
    torch.nn.init.normal_(model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    model.save_pretrained(adapter.with_name("foreign"))
    assert main(["verify", str(adapter.with_name("foreign")), "--model", str(base)]) == 1
    assert main(["verify", str(adapter.with_name("foreign")), "--model", str(base), "--engines", "[peft, vllm]"]) == 0


# ------------------------------------------------------------------ the allocation alone


def test_peft_starts_from_the_learned_ranks(adapter: Path) -> None:
    file = adapter.with_name("ranks.json")
    assert main(["export", str(adapter), "--rank-pattern", str(file)]) == 0
    config = peft.LoraConfig(**json.loads(file.read_text()))
    model = peft.get_peft_model(LLAMA.build(), config)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    ranks = {n.removeprefix("base_model.model."): layer.r["default"] for n, layer in layers.items()}
    live = {n: rank for n, rank in rw.load(LLAMA.build(), adapter).ranks().items() if rank}
    assert ranks == live and len(set(live.values())) > 1
    assert {layer.scaling["default"] for layer in layers.values()} == {1.0}


def test_axolotl_s_fields(adapter: Path) -> None:
    file = adapter.with_name("ranks.yaml")
    assert main(["export", str(adapter), str(adapter.with_name("lora")), "--rank-pattern", str(file)]) == 0
    config = yaml.safe_load(file.read_text())
    assert config.keys() == {
        *("adapter", "lora_r", "lora_alpha", "lora_target_modules", "lora_rank_pattern", "lora_alpha_pattern")
    }
    assert config["lora_rank_pattern"] == {n: r for n, r in rw.load(LLAMA.build(), adapter).ranks().items() if r}
    assert (adapter.with_name("lora") / peft_format.CONFIG).is_file()


# ------------------------------------------------------------------ what cannot be


BAD = {
    "nothing to write": (["ADAPTER"], "out is missing"),
    "nothing to verify": (["ADAPTER", "--verify", "--rank-pattern", "OUT.json"], "out is missing"),
    "no adapter": (["BASE", "OUT"], "neither a run nor an adapter"),
    "another model": (["ADAPTER", "OUT", "--model", "OTHER"], "was made for another model"),
    "no model": (["ADAPTER", "OUT", "--model", "nowhere/at-all"], "'nowhere/at-all' is no model"),
    "pattern of no kind": (["ADAPTER", "--rank-pattern", "OUT.txt"], "is neither"),
    "layout": (["ADAPTER", "OUT", "--layout", "padded"], "portable"),
    "rank": (["ADAPTER", "OUT", "--rank", "1"], "rank=1 is below"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line(
    arguments: list[str], message: str, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MODELS["gpt2"].build().save_pretrained(adapter.with_name("other"))
    places = {word: adapter.with_name(word.lower()) for word in ("ADAPTER", "BASE", "OTHER", "OUT")}
    told = [
        word.replace(word.split(".")[0], str(places.get(word.split(".")[0], word.split(".")[0]))) for word in arguments
    ]
    capsys.readouterr()
    assert main(["export", *told]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("rankwise export: ") and error.count("\n") == 1
    assert not any(f.name.startswith("out") for f in adapter.parent.iterdir())


def test_a_folder_without_a_base_needs_a_model(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(adapter.with_name("lora"))
    assert main(["export", str(adapter), out]) == 0
    assert main(["verify", out]) == 2
    assert "does not say which model it was made for. Give it with --model" in capsys.readouterr().err
