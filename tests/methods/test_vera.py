"""VeRA against PEFT's, and its one pair of projections, which is there once whatever is done to the model."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

import rankwise as rw
from contract.models import BY_NAME, ENCODER
from contract.runs import gradients, outputs, train
from rankwise.methods.vera import Pair, VeRALayer

LLAMA = ["q_proj", "k_proj", "up_proj", "down_proj"]


def published(name: str, targets: list[str], rank: int, seed: int) -> PeftModel:
    config = VeraConfig(
        r=rank, target_modules=targets, projection_prng_key=seed, fan_in_fan_out=name == "gpt2", d_initial=0.2
    )
    return get_peft_model(BY_NAME[name].build(), config)


@pytest.mark.parametrize(
    ("name", "targets", "rank", "seed"),
    [
        ("bert", ["query", "value", "intermediate.dense"], 5, 0),
        ("bert", ["query", "intermediate.dense", "output.dense"], 64, 7),  # wider than the layers
        ("gpt2", ["c_attn", "c_fc"], 16, 3),
        ("llama-gqa", LLAMA, 8, 2**40),
    ],
)
def test_vera_is_peft_s(name: str, targets: list[str], rank: int, seed: int):
    theirs, batch = published(name, targets, rank, seed), BY_NAME[name].batch()
    model = BY_NAME[name].build()
    adaptation = rw.adapt(model, rw.VeRA(rank=rank, seed=seed, init_gate=0.2, targets=targets, also_train=[]))
    names = {n: f"base_model.model.{n}" for n in adaptation.adapters}
    pair = pairs(model)[0]
    assert torch.equal(pair.A, theirs.base_model.vera_A["default"])
    assert torch.equal(pair.B, theirs.base_model.vera_B["default"])
    with torch.no_grad():
        for own, adapter in adaptation.adapters.items():
            layer = theirs.get_submodule(names[own])
            assert torch.equal(adapter.d, layer.vera_lambda_d["default"])
            assert torch.equal(adapter.b, layer.vera_lambda_b["default"])
            for vector, other in ((adapter.d, layer.vera_lambda_d), (adapter.b, layer.vera_lambda_b)):
                vector.copy_(torch.randn_like(vector))
                other["default"].copy_(vector)
    base = outputs(BY_NAME[name].build(), batch)
    torch.testing.assert_close(outputs(model, batch), outputs(theirs, batch), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(outputs(model, batch), base, rtol=1e-2)
    ours, their_gradients = gradients(model, batch), gradients(theirs, batch)
    for own, published_name in names.items():
        for vector, other in (("d", "vera_lambda_d"), ("b", "vera_lambda_b")):
            expected = their_gradients[f"{published_name}.{other}.default"]
            torch.testing.assert_close(ours[f"{own}.{vector}"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        outputs(adaptation.merge(), batch), outputs(theirs.merge_and_unload(), batch), rtol=1e-5, atol=1e-5
    )


def test_the_pair_of_a_bfloat16_model_is_peft_s():
    config = VeraConfig(r=8, target_modules=["query", "output.dense"], projection_prng_key=1)
    theirs = get_peft_model(BY_NAME["bert"].build().bfloat16(), config)
    model = BY_NAME["bert"].build().bfloat16()
    rw.adapt(model, rw.VeRA(rank=8, seed=1, targets=["query", "output.dense"], also_train=[]))
    [pair] = pairs(model)
    assert pair.A.dtype == pair.B.dtype == torch.bfloat16
    assert torch.equal(pair.A.float(), theirs.base_model.vera_A["default"].float())
    assert torch.equal(pair.B.float(), theirs.base_model.vera_B["default"].float())


# ------------------------------------------------------------------ one pair


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_keeps_no_copy_of_the_projections(dtype: torch.dtype):
    """Of what the graph holds for the backward pass, nothing as large as a projection is anything but the pair."""
    model, batch = ENCODER.build().to(dtype), ENCODER.batch()
    rw.adapt(model, rw.VeRA(rank=2048, exclude=["pooler.dense"]))
    pair = assert_one_pair(model)
    own = {pair.A.untyped_storage().data_ptr(), pair.B.untyped_storage().data_ptr()}
    largest = 0

    def note(saved: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        if saved.untyped_storage().data_ptr() not in own:
            largest = max(largest, saved.untyped_storage().nbytes() // saved.element_size())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        model(**batch).loss.backward()
    assert 0 < largest < 2048 * 32  # the smallest projection


def pairs(model: nn.Module) -> list[Pair]:
    """Each once."""
    return [m for m in model.modules() if isinstance(m, Pair)]


def assert_one_pair(model: nn.Module) -> Pair:
    [pair] = pairs(model)
    layers = [m for m in model.modules() if isinstance(m, VeRALayer)]
    for layer in layers:
        up, down, gate, out, _ = layer.factors()
        assert up.untyped_storage().data_ptr() == pair.B.untyped_storage().data_ptr()
        assert down.untyped_storage().data_ptr() == pair.A.untyped_storage().data_ptr()
        assert gate is layer.d and out is layer.b
    assert len(layers) == 12
    return pair


def test_the_pair_is_there_once_and_does_not_count():
    model = ENCODER.build()
    before = sum(p.numel() for p in model.parameters())
    adaptation = rw.adapt(model, rw.VeRA(rank=1024, exclude=["pooler.dense"], also_train=[]))
    pair = assert_one_pair(model)
    assert pair.A.shape == (1024, 48) and pair.B.shape == (48, 1024)
    vectors = sum(1024 + a.d_out for a in adaptation.adapters.values())
    assert adaptation.count() == vectors == sum(p.numel() for p in adaptation.parameters())
    assert sum(p.numel() for p in model.parameters()) == before + vectors
    assert not [n for n in model.state_dict() if "pair" in n]


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        lambda model: model.to(torch.float64),
        lambda model: model.bfloat16(),
        lambda model: model.to("meta").to_empty(device="cpu"),
        lambda model: model.eval(),
    ],
    ids=["deepcopy", "float64", "bfloat16", "device", "eval"],
)
def test_the_pair_stays_one(change):
    model = ENCODER.build()
    rw.adapt(model, rw.VeRA(rank=16, exclude=["pooler.dense"]))
    pair = pairs(model)[0]
    changed = change(model)
    assert (assert_one_pair(changed) is pair) == (changed is model)


def test_layers_of_two_devices_have_a_pair_on_each():
    model = nn.ModuleList([nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8, device="meta")])
    adapters = rw.VeRA(rank=4).install(model).adapters
    assert sorted(p.A.device.type for p in pairs(model)) == ["cpu", "meta"]
    assert all(a.pair.A.device == a.base.weight.device for a in adapters.values())


def test_the_smallest_layer_takes_a_corner():
    model = nn.ModuleList([nn.Linear(6, 3), nn.Linear(2, 8)])
    first, second = rw.adapt(model, rw.VeRA(rank=4, rank_pattern={"1": 3})).adapters.values()
    assert first.pair is second.pair and first.pair.A.shape == (4, 6) and first.pair.B.shape == (8, 4)
    assert torch.equal(second.factors().down, first.pair.A[:3, :2])
    assert torch.equal(second.factors().up, first.pair.B[:, :3])


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("save", [False, True])
def test_the_pair_is_in_the_file_once_if_asked(save: bool, tmp_path: Path):
    adaptation = rw.adapt(ENCODER.build(), rw.VeRA(rank=6, save_projections=save))
    train(adaptation, ENCODER.batch(), steps=2)
    if save:
        pairs(adaptation.model)[0].A.normal_()  # as if another machine had drawn other numbers
    adaptation.save(tmp_path)
    written = load_file(tmp_path / "adapter.safetensors")
    shared = [n for n in written if n.endswith(("::A", "::B"))]
    assert [written[n].shape for n in sorted(shared)] == ([(6, 48), (48, 6)] if save else [])
    loaded = rw.load(ENCODER.build(), tmp_path)
    assert torch.equal(outputs(loaded.model, ENCODER.batch()), outputs(adaptation.model, ENCODER.batch()))
    assert torch.equal(pairs(loaded.model)[0].A, pairs(adaptation.model)[0].A)
    assert len(pairs(loaded.model)) == 1


def test_the_projections_of_a_peft_folder_are_the_seed_s(tmp_path: Path):
    theirs = published("bert", ["query", "value", "output.dense"], rank=9, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    model = BY_NAME["bert"].build()
    rw.adapt(model, rw.VeRA(rank=9, seed=5, targets=["query", "value", "output.dense"], also_train=[]))
    [pair] = pairs(model)
    assert torch.equal(tensors["base_model.vera_A"], pair.A) and torch.equal(tensors["base_model.vera_B"], pair.B)
