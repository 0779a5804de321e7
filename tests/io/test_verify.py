"""What each engine makes of a folder: of good ones, of compact ones, and of those that other tools write."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import BartForSequenceClassification, PreTrainedModel, T5ForSequenceClassification

import rankwise as rw
from contract.methods import BY_NAME as METHODS
from contract.models import ARCHITECTURES, Architecture
from contract.models import BY_NAME as MODELS
from contract.runs import trained
from rankwise.io import peft_format
from rankwise.io import verify as verification
from rankwise.io.peft_format import PeftFolder
from rankwise.io.sample import sample_inputs
from rankwise.io.verify import READERS, Reference, Verdict, logits_of, verify
from rankwise.updates import updates

LLAMA = MODELS["llama-gqa"]
ALL = set(READERS)


def verdicts(folder: Path, architecture: Architecture = LLAMA, adaptation: Any = None) -> dict[str, Verdict]:
    """By engine; against the adaptation, where one is given."""
    model = architecture.build()
    inputs = sample_inputs(model)
    reference = None
    if adaptation is not None:
        with torch.no_grad():
            logits = logits_of(adaptation.model.eval(), inputs)
        reference = Reference(logits, updates(adaptation.adapters))
    return {v.engine: v for v in verify(folder, model, inputs, reference)}


def agreeing(found: dict[str, Verdict]) -> set[str]:
    return {name for name, v in found.items() if v.agrees}


def refusing(found: dict[str, Verdict]) -> set[str]:
    return {name for name, v in found.items() if v.refused is not None}


def of_peft(folder: Path, **settings: Any) -> Path:
    """A folder that PEFT itself writes, its update not 0."""
    torch.manual_seed(3)
    config = peft.LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"], **settings})
    model = peft.get_peft_model(LLAMA.build(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "adalora", "aflora-all"])
def test_a_portable_folder_is_read_by_all_as_meant(method: str, tmp_path: Path) -> None:
    adaptation = trained(LLAMA, METHODS[method].method)
    adaptation.export(tmp_path / "lora")
    found = verdicts(tmp_path / "lora", adaptation=adaptation)
    assert agreeing(found) == ALL and list(found) == list(READERS)
    assert all(v.difference < 1e-6 and v.error < 1e-6 for v in found.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda row: row.name)
def test_every_architecture_can_be_tried(architecture: Architecture, tmp_path: Path) -> None:
    """Sample inputs are made from the config alone."""
    rw.adapt(architecture.build(), rw.LoRA(rank=2)).export(tmp_path / "lora")
    found = verdicts(tmp_path / "lora", architecture)
    assert {"peft", "transformers", "vllm", "llama.cpp"} <= agreeing(found)


def test_a_compact_folder_is_for_peft(tmp_path: Path) -> None:
    """llama.cpp divides alpha by each tensor's rank: the fewer ranks, the more too strong. Stacking engines refuse."""
    adaptation = trained(LLAMA, METHODS["adalora"].method)
    adaptation.export(tmp_path / "lora", layout="compact")
    found = verdicts(tmp_path / "lora", adaptation=adaptation)
    assert agreeing(found) == {"peft", "transformers", "vllm"}
    assert refusing(found) == {"sglang", "tgi"} and "ranks" in str(found["sglang"].refused)
    live = {path: rank for path, rank in adaptation.ranks().items() if rank}
    wrong = found["llama.cpp"]
    assert live[wrong.worst] == min(live.values())
    assert wrong.error == pytest.approx(max(live.values()) / min(live.values()) - 1, rel=1e-5)


FOREIGN: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    # settings of PEFT: who agrees with PEFT, who refuses
    "plain": ({}, ALL, set()),
    "rank-stabilised": ({"use_rslora": True}, ALL - {"sglang", "llama.cpp"}, set()),
    "DoRA": ({"use_dora": True}, {"peft", "transformers"}, {"vllm", "llama.cpp"}),
    "head": ({"modules_to_save": ["lm_head"]}, {"peft", "transformers", "sglang", "tgi"}, {"vllm", "llama.cpp"}),
    "alpha pattern": ({"alpha_pattern": {"down_proj": 4}}, {"peft", "transformers"}, set()),
    "rank pattern": ({"rank_pattern": {"q_proj": 4}}, {"peft", "transformers", "llama.cpp"}, set()),
    "some layers": ({"layers_to_transform": [1]}, ALL - {"tgi"}, set()),
    "k and v only": ({"target_modules": ["k_proj", "v_proj"]}, ALL - {"sglang"}, {"sglang"}),
    "too wide for vLLM": ({"r": 1024}, ALL - {"vllm"}, {"vllm"}),
}


@pytest.mark.parametrize(("settings", "agree", "refuse"), FOREIGN.values(), ids=FOREIGN.keys())
def test_folders_of_other_tools(settings: dict[str, Any], agree: set[str], refuse: set[str], tmp_path: Path) -> None:
    found = verdicts(of_peft(tmp_path / "lora", **settings))
    assert agreeing(found) == agree and refusing(found) == refuse


def changed(folder: Path, change: Callable[[PeftFolder], None]) -> None:
    content = peft_format.read(folder)
    tensors = {name: tensor.clone() for name, tensor in content.tensors.items()}
    content = PeftFolder(content.config, tensors)
    change(content)
    peft_format.write(folder, content)


def test_a_wrong_tensor_is_found_and_named(tmp_path: Path) -> None:
    adaptation = trained(LLAMA, METHODS["lora"].method)
    adaptation.export(tmp_path / "lora")
    path = "model.layers.1.mlp.up_proj"
    changed(tmp_path / "lora", lambda content: content.tensors[peft_format.tensor_name(path, "B")].mul_(1.5))
    found = verdicts(tmp_path / "lora", adaptation=adaptation)
    assert not agreeing(found) and not refusing(found)
    assert {v.worst for v in found.values()} == {path}
    assert all(v.error == pytest.approx(0.5, rel=1e-5) for v in found.values())


def test_a_layer_that_is_left_out_is_found(tmp_path: Path) -> None:
    """PEFT reads a folder that lacks layers with a warning."""
    adaptation = trained(LLAMA, METHODS["lora"].method)
    adaptation.export(tmp_path / "lora")
    path = "model.layers.0.self_attn.v_proj"

    def drop(content: PeftFolder) -> None:
        for factor in ("A", "B"):
            del content.tensors[peft_format.tensor_name(path, factor)]  # type: ignore[arg-type]

    changed(tmp_path / "lora", drop)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        found = verdicts(tmp_path / "lora", adaptation=adaptation)
    assert not agreeing(found) and refusing(found) == set()
    assert all(v.worst == path and v.error == 1.0 for name, v in found.items() if name != "tgi")


def test_a_wrong_scale_is_found(tmp_path: Path) -> None:
    adaptation = trained(LLAMA, METHODS["lora"].method)
    adaptation.export(tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / peft_format.CONFIG).read_text())
    (tmp_path / "lora" / peft_format.CONFIG).write_text(json.dumps(config | {"lora_alpha": 16}))
    found = verdicts(tmp_path / "lora", adaptation=adaptation)
    assert not agreeing(found) and all(v.error == pytest.approx(1.0, rel=1e-5) for v in found.values())


def test_a_config_that_peft_does_not_read(tmp_path: Path) -> None:
    adaptation = trained(LLAMA, METHODS["lora"].method)
    adaptation.export(tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / peft_format.CONFIG).read_text())
    (tmp_path / "lora" / peft_format.CONFIG).write_text(json.dumps(config | {"r": 0}))
    found = verdicts(tmp_path / "lora", adaptation=adaptation)
    assert refusing(found) == ALL - {"llama.cpp"}  # which does not read r
    assert str(found["peft"].refused).startswith("ValueError: ") and "no rank" in str(found["vllm"].refused)
    with pytest.raises(rw.FolderError, match="PEFT does not read"):
        verdicts(tmp_path / "lora")


def test_the_model_is_not_changed(tmp_path: Path) -> None:
    folder, model = of_peft(tmp_path / "lora"), LLAMA.build()
    state, names = {n: t.clone() for n, t in model.state_dict().items()}, [n for n, _ in model.named_modules()]
    verify(folder, model, sample_inputs(model))
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert [n for n, _ in model.named_modules()] == names
    assert not any(m._forward_hooks for m in model.modules())


def test_another_model_is_refused(tmp_path: Path) -> None:
    folder, model = of_peft(tmp_path / "lora"), MODELS["gpt2"].build()
    with pytest.raises(rw.FolderError, match="has no such linear layer"):
        verify(folder, model, sample_inputs(model))


def test_without_peft_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model = of_peft(tmp_path / "lora"), LLAMA.build()
    monkeypatch.setattr(verification, "find_spec", lambda name: None)
    with pytest.raises(rw.ConfigError, match=r"verify needs the package peft, .*rankwise\[peft\]"):
        verify(folder, model, sample_inputs(model))


def test_unknown_engines_and_folders_are_refused(tmp_path: Path) -> None:
    folder, model = of_peft(tmp_path / "lora"), LLAMA.build()
    with pytest.raises(rw.ConfigError, match="unknown engine 'ollama'"):
        verify(folder, model, sample_inputs(model), engines=["ollama"])
    with pytest.raises(rw.FolderError, match=r"it has no adapter_config\.json"):
        verify(tmp_path, model, sample_inputs(model))
    changed(folder, lambda content: content.tensors.clear())
    with pytest.raises(rw.FolderError, match="holds no lora_A and lora_B"):
        verify(folder, model, sample_inputs(model))


def classifier(name: str) -> PreTrainedModel:
    """The encoder-decoder with a head that classifies."""
    config = copy.deepcopy(MODELS[name].build().config)
    torch.manual_seed(11)
    return {"bart": BartForSequenceClassification, "t5": T5ForSequenceClassification}[name](config)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_classifier_with_a_decoder_can_be_tried(name: str, tmp_path: Path) -> None:
    """It finds the end of the text in the decoder's row, which it makes itself."""
    rw.adapt(classifier(name), rw.LoRA(rank=2)).export(tmp_path / "lora")
    model = classifier(name)
    inputs = sample_inputs(model)
    found = {v.engine: v for v in verify(tmp_path / "lora", model, inputs)}
    assert {"peft", "transformers", "vllm", "llama.cpp"} <= agreeing(found)
    assert logits_of(model, inputs).shape == (1, model.config.num_labels)


@pytest.mark.parametrize("end", [None, [], [2, 3]])
def test_where_a_text_ends_is_in_the_config(end: Any) -> None:
    model = classifier("bart")
    model.config.eos_token_id = end
    if end:
        assert sample_inputs(model)["input_ids"][0, -1] == end[0]
        return
    with pytest.raises(rw.ConfigError, match=r"has eos_token_id=(None|\[\])\. Set it there"):
        sample_inputs(model)


def test_inputs_that_a_model_does_not_take_are_refused(tmp_path: Path) -> None:
    folder, model = of_peft(tmp_path / "lora"), LLAMA.build()
    for inputs in ({"input_ids": torch.tensor([[10**6]])}, {"pixels": torch.ones(1)}):
        with pytest.raises(rw.ConfigError, match=r"computes nothing from .*Error: .*with inputs that it takes"):
            verify(folder, model, inputs)


def test_a_model_that_says_nothing_of_its_inputs_is_refused() -> None:
    with pytest.raises(rw.ConfigError, match="does not say what it reads"):
        sample_inputs(nn.Linear(2, 2))
