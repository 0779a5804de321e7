"""Adapters of every method in one bank: each row of a batch is what its adapter alone makes of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import rankwise as rw
from contract.methods import BY_NAME, ROWS, Row
from contract.models import ARCHITECTURES, ENCODER, OFTEN, Architecture, Batch
from contract.models import BY_NAME as MODELS
from contract.runs import outputs, trained
from rankwise.adapter import Method
from sampled import some

each_method = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)

# DeBERTa gives its positions to the layers once for the whole batch, so their adapters cannot differ between rows
NOT_BY_ROW = {"deberta-v2": ["pos_query_proj", "pos_key_proj"]}
often = [i for i, row in enumerate(ARCHITECTURES) if row.name in OFTEN]
each_architecture = pytest.mark.parametrize("architecture", some(ARCHITECTURES, often), ids=lambda row: row.name)


def tiled(batch: Batch, times: int) -> Batch:
    return {name: torch.cat([t] * times) for name, t in batch.items()}


def saved(architecture: Architecture, method: Method, folder: Path, seed: int) -> tuple[Path, PreTrainedModel]:
    """A trained adapter's folder, and the model that carries it."""
    torch.manual_seed(seed)
    adaptation = trained(architecture, method)
    adaptation.save(folder)
    return folder, adaptation.model


def expected(alone: dict[str | None, PreTrainedModel], names: list[str | None], batch: Batch) -> Tensor:
    """Row by row from the models that carry one adapter each."""
    whole = {name: outputs(model, batch) for name, model in alone.items()}
    return torch.stack([whole[name][i] for i, name in enumerate(names)])


@each_method
def test_rows_are_what_their_adapter_alone_gives(row: Row, tmp_path: Path):
    """Beside a LoRA of another rank, which some layers do not have."""
    a, model_a = saved(ENCODER, row.method, tmp_path / "a", 1)
    b, model_b = saved(ENCODER, rw.LoRA(rank=3, targets=["query", "dense"]), tmp_path / "b", 2)
    names: list[str | None] = ["a", "b", None, "b", "a", "a"]
    alone = {"a": model_a, "b": model_b, None: ENCODER.build()}
    bank = rw.Bank(ENCODER.build())
    bank.add("a", a)
    bank.add("b", b)
    batch = tiled(ENCODER.batch(), 3)
    with bank.rows(names):
        mixed = outputs(bank.model, batch)
    torch.testing.assert_close(mixed, expected(alone, names, batch), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[2], outputs(alone[None], batch)[2], rtol=1e-6, atol=1e-6)
    for name in ("a", "b"):
        with bank.rows([name] * 6):
            torch.testing.assert_close(outputs(bank.model, batch), outputs(alone[name], batch), rtol=1e-5, atol=1e-5)
    assert torch.equal(outputs(bank.model, batch), outputs(alone[None], batch))


@each_architecture
def test_on_every_architecture(architecture: Architecture, tmp_path: Path):
    """Enough adapters that each row takes its own product, and few that all rows take one."""
    exclude = NOT_BY_ROW.get(architecture.name)
    methods = {n: replace(BY_NAME[n].method, exclude=exclude) for n in ("lora", "adalora", "aflora-all", "aflora-none")}
    bank, alone = rw.Bank(architecture.build()), {None: architecture.build()}
    for seed, (name, method) in enumerate(methods.items()):
        folder, alone[name] = saved(architecture, method, tmp_path / name, seed)
        bank.add(name, folder)
    batch = tiled(architecture.batch(), 3)
    for names in (["lora", "adalora", "aflora-all", None, "aflora-none", "lora"], ["lora", None] * 3):
        with bank.rows(names):
            mixed = outputs(bank.model, batch)
        torch.testing.assert_close(mixed, expected(alone, names, batch), rtol=1e-5, atol=1e-5)


def test_a_live_adaptation_is_copied(tmp_path: Path):
    adaptation = trained(ENCODER, BY_NAME["adalora"].method)
    bank, batch = rw.Bank(ENCODER.build()), ENCODER.batch()
    bank.add("live", adaptation)
    before = outputs(adaptation.model, batch)
    for parameter in adaptation.parameters():
        parameter.data.add_(1.0)
    with bank.rows(["live", "live"]):
        torch.testing.assert_close(outputs(bank.model, batch), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "adalora", "aflora-all"])
def test_blocks_of_a_fused_weight(name: str, tmp_path: Path):
    gpt2 = MODELS["gpt2"]
    method = replace(BY_NAME[name].method, targets=["c_attn[q,v]", "c_fc"])
    folder, model = saved(gpt2, method, tmp_path / "a", 1)
    bank = rw.Bank(gpt2.build())
    bank.add("a", folder)
    batch = gpt2.batch()
    with bank.rows(["a", None]):
        mixed = outputs(bank.model, batch)
    expect = expected({"a": model, None: gpt2.build()}, ["a", None], batch)
    torch.testing.assert_close(mixed, expect, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ arithmetic


@each_method
def test_a_weighted_sum_is_the_sum_of_the_updates(row: Row, tmp_path: Path):
    """0.7 Δ_a − 0.2 Δ_b, on the bank, saved, and loaded as any adapter."""
    method = replace(row.method, also_train=())
    other = rw.LoRA(rank=5, targets=["query", "dense"], also_train=())
    weights = {"a": 0.7, "b": -0.2}
    plain = ENCODER.build()
    bank = rw.Bank(ENCODER.build())
    for seed, (name, m) in enumerate({"a": method, "b": other}.items()):
        torch.manual_seed(seed)
        adaptation = trained(ENCODER, m)
        adaptation.save(tmp_path / name)
        bank.add(name, tmp_path / name)
        with torch.no_grad():
            for path, adapter in adaptation.adapters.items():
                plain.get_submodule(path).weight += weights[name] * adapter.delta()
    bank.combine("both", weights)
    batch = ENCODER.batch()
    with bank.rows(["both", "both"]):
        torch.testing.assert_close(outputs(bank.model, batch), outputs(plain, batch), rtol=1e-5, atol=1e-5)
    bank.save("both", tmp_path / "both")
    loaded = rw.load(ENCODER.build(), tmp_path / "both")
    assert loaded.method.name == "lora" and not loaded.trained
    torch.testing.assert_close(outputs(loaded.model, batch), outputs(plain, batch), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs(loaded.merge(), batch), outputs(plain, batch), rtol=1e-5, atol=1e-5)


def test_more_ranks_than_the_matrix_has_become_the_matrix(tmp_path: Path):
    """Four adapters of rank 20 on 32-wide layers."""
    bank, plain = rw.Bank(ENCODER.build()), ENCODER.build()
    for seed in range(4):
        torch.manual_seed(seed)
        adaptation = trained(ENCODER, rw.LoRA(rank=20, also_train=()))
        bank.add(str(seed), adaptation)
        with torch.no_grad():
            for path, adapter in adaptation.adapters.items():
                plain.get_submodule(path).weight += adapter.delta()
    bank.combine("all", dict.fromkeys(bank.names, 1.0))
    bank.save("all", tmp_path / "all")
    loaded = rw.load(ENCODER.build(), tmp_path / "all")
    assert set(loaded.ranks().values()) == {32}
    batch = ENCODER.batch()
    torch.testing.assert_close(outputs(loaded.model, batch), outputs(plain, batch), rtol=1e-5, atol=2e-5)
