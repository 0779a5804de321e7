"""Checkpoints of loralib: made by loralib, computed with by loralib, and the same logits here."""

from pathlib import Path
from typing import Any

import loralib
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

import rankwise as rw
from contract.models import BY_NAME, ENCODER, Architecture, Batch
from contract.runs import outputs, train
from rankwise.cli import main

GPT2 = BY_NAME["gpt2"]


def place(model: PreTrainedModel, ending: str, make: Any) -> None:
    """`make(old)` takes the place of every layer of that ending, with the old weight."""
    for name, old in list(model.named_modules()):
        if name.endswith(ending):
            new = make(old)
            with torch.no_grad():
                new.weight.copy_(old.weight)
                new.bias.copy_(old.bias)
            model.set_submodule(name, new)


def plain(**settings: Any) -> Any:
    return lambda old: loralib.Linear(old.in_features, old.out_features, lora_alpha=12, merge_weights=False, **settings)


def merged(enabled: list[bool]) -> Any:
    def make(old: nn.Module) -> nn.Module:
        d_in, d_out = old.weight.shape
        settings = {"r": 3, "lora_alpha": 12, "fan_in_fan_out": True, "merge_weights": False}
        return loralib.MergedLinear(d_in, d_out, enable_lora=enabled, **settings)

    return make


def trained(model: PreTrainedModel, batch: Batch) -> Tensor:
    loralib.mark_only_lora_as_trainable(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(4):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return outputs(model, batch)


def encoder() -> tuple[PreTrainedModel, Tensor]:
    torch.manual_seed(2)
    model = ENCODER.build()
    place(model, "self.query", plain(r=4))
    place(model, "self.value", plain(r=2))
    return model, trained(model, ENCODER.batch())


def decoder(enabled: list[bool]) -> tuple[PreTrainedModel, Tensor]:
    torch.manual_seed(2)
    model = GPT2.build()
    place(model, "attn.c_attn", merged(enabled))
    return model, trained(model, GPT2.batch())


def check(architecture: Architecture, source: rw.Loralib, wanted: Tensor, tmp_path: Path) -> rw.Adaptation:
    model, batch = architecture.build(), architecture.batch()
    base = outputs(model, batch)
    adaptation = rw.load(model, source)
    torch.testing.assert_close(outputs(model, batch), wanted, rtol=1e-6, atol=1e-6)
    assert (wanted - base).abs().max() > 1e-3
    train(adaptation, batch)
    adaptation.save(tmp_path / "native")
    again = architecture.build()
    rw.load(again, tmp_path / "native")
    assert torch.equal(outputs(again, batch), outputs(model, batch))
    return adaptation


@pytest.mark.parametrize("how", ["plain", "nested", "ddp", "safetensors"])
def test_linears(how: str, tmp_path: Path) -> None:
    model, wanted = encoder()
    state = loralib.lora_state_dict(model)
    path = tmp_path / ("lora.safetensors" if how == "safetensors" else "lora.pt")
    if how == "safetensors":
        save_file(state, path)
    elif how == "ddp":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    else:
        torch.save({"model_state_dict": state} if how == "nested" else state, path)
    adaptation = check(ENCODER, rw.Loralib(path, alpha=12), wanted, tmp_path)
    assert {name.rpartition(".")[2]: rank for name, rank in adaptation.ranks().items()} == {"query": 4, "value": 2}


@pytest.mark.parametrize("blocks", ["qv", "qkv", "v"])
def test_merged_linears(blocks: str, tmp_path: Path) -> None:
    model, wanted = decoder([block in blocks for block in "qkv"])
    torch.save(loralib.lora_state_dict(model), tmp_path / "lora.pt")
    source = rw.Loralib(tmp_path / "lora.pt", alpha=12, blocks={"c_attn": list(blocks)})
    adaptation = check(GPT2, source, wanted, tmp_path)
    assert [name.rpartition(".")[2] for name in adaptation.ranks()][: len(blocks)] == [f"c_attn[{b}]" for b in blocks]


def test_the_wrong_blocks_are_another_adapter(tmp_path: Path) -> None:
    """The file cannot tell, so who loads it must."""
    model, wanted = decoder([True, False, True])
    torch.save(loralib.lora_state_dict(model), tmp_path / "lora.pt")
    mine = GPT2.build()
    rw.load(mine, rw.Loralib(tmp_path / "lora.pt", alpha=12, blocks={"c_attn": ["q", "k"]}))
    assert (outputs(mine, GPT2.batch()) - wanted).abs().max() > 1e-3


def test_a_head_beside_them(tmp_path: Path) -> None:
    model, _ = encoder()
    head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("classifier.")}
    torch.save(loralib.lora_state_dict(model) | {n: t + 1 for n, t in head.items()}, tmp_path / "lora.pt")
    with pytest.raises(rw.FolderError, match="trained="):
        rw.load(ENCODER.build(), rw.Loralib(tmp_path / "lora.pt", alpha=12))
    mine = ENCODER.build()
    adaptation = rw.load(mine, rw.Loralib(tmp_path / "lora.pt", alpha=12, trained=["classifier"]))
    assert all(torch.equal(adaptation.trained[name], tensor + 1) for name, tensor in head.items())
    assert (outputs(mine, ENCODER.batch()) - outputs(model, ENCODER.batch())).abs().min() > 0.5


def test_the_command_converts_them(tmp_path: Path) -> None:
    model, wanted = decoder([True, False, True])
    path, out = tmp_path / "lora.pt", tmp_path / "out"
    torch.save(loralib.lora_state_dict(model), path)
    assert main(["convert", str(path), str(out), "--to", "adalora"]) == 2  # no alpha
    options = ["--alpha", "12", "--blocks", "{c_attn: [q, v]}"]
    assert main(["convert", str(path), str(out), "--to", "adalora", *options]) == 0
    mine = GPT2.build()
    assert rw.load(mine, out).method.name == "adalora"
    torch.testing.assert_close(outputs(mine, GPT2.batch()), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "wrong", "right"),
    [
        *(
            ("blocks", wrong, "'{c_attn: [q, v]}'")
            for wrong in ("c_attn", "{c_attn: q}", "{c_attn: 2}", "[c_attn]", "")
        ),
        *(("trained", wrong, "'[classifier]'") for wrong in ("classifier", "{classifier: true}", "[1]")),
    ],
)
def test_a_fact_of_another_form_is_refused(
    option: str, wrong: str, right: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(loralib.lora_state_dict(decoder([True, False, True])[0]), tmp_path / "lora.pt")
    command = ["convert", str(tmp_path / "lora.pt"), str(tmp_path / "out"), "--alpha", "1", f"--{option}={wrong}"]
    capsys.readouterr()
    assert main(command) == 2
    told = f"rankwise convert: --{option} {wrong!r} is not possible; write it as in {right}.\n"
    assert capsys.readouterr().err == told and not (tmp_path / "out").exists()


def test_what_is_no_such_checkpoint_is_refused(tmp_path: Path) -> None:
    model, _ = decoder([True, False, True])
    torch.save(loralib.lora_state_dict(model), tmp_path / "fused.pt")
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    torch.save(loralib.lora_state_dict(model, bias="lora_only"), tmp_path / "bias.pt")
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name, reason in {
        "fused": "say which 2 blocks it enabled",
        "whole": "no factor of a low-rank update",
        "bias": "no factor of a low-rank update",
        "old": "since version 1.6",
        "absent": "is not there",
    }.items():
        with pytest.raises(rw.FolderError, match=reason):
            rw.load(GPT2.build(), rw.Loralib(tmp_path / f"{name}.pt", alpha=12))
    for alpha in (0, -1, float("nan")):
        with pytest.raises(rw.ConfigError, match="must be positive"):
            rw.Loralib(tmp_path / "fused.pt", alpha=alpha)
    with pytest.raises(rw.ConfigError, match="names of the blocks"):
        rw.Loralib(tmp_path / "fused.pt", alpha=1, blocks={"c_attn": "qv"})
    with pytest.raises(rw.FolderError, match="Loralib"):
        rw.load(GPT2.build(), tmp_path / "fused.pt")
