"""What merging says of itself: figures against literal twins, warnings, types, samples."""

import warnings

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering

import rankwise as rw
from contract.methods import ROWS, Row
from contract.models import BY_NAME as MODELS
from contract.models import ENCODER, Architecture, Batch
from contract.runs import outputs, trained
from rankwise.merging import compared

LLAMA = MODELS["llama-gqa"]


def inputs(architecture: Architecture) -> Batch:
    return {name: tensor for name, tensor in architecture.batch().items() if name != "labels"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_rounding_takes_is_measured(row: Row):
    """‖(round(W + Δ) − W) − Δ‖ / ‖Δ‖ of each layer, for every method, in bfloat16."""
    adaptation = trained(ENCODER, row.method)
    own = {id(p) for adapter in adaptation.adapters.values() for p in adapter.parameters(recurse=False)}
    for parameter in adaptation.model.parameters():
        if id(parameter) not in own:
            parameter.data = parameter.data.bfloat16()
    before = {n: (a.base.weight.float().clone(), a.delta().detach()) for n, a in adaptation.adapters.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = adaptation.merge(dtype=torch.bfloat16)
    error = adaptation.merge_error
    assert error is not None and error.lost.keys() == before.keys()
    for name, (W, delta) in before.items():
        gained = model.get_submodule(name).weight.detach().float() - W
        share = float((gained - delta).norm() / delta.norm()) if delta.any() else 0.0
        assert error.lost[name] == pytest.approx(share, rel=1e-4)
    assert "lost of the updates in rounding: median" in str(error)


def test_a_wider_type_loses_nothing_of_an_update_to_a_narrow_model():
    adaptation = rw.adapt(LLAMA.build().bfloat16(), rw.LoRA(rank=2))
    for adapter in adaptation.adapters.values():
        nn.init.normal_(adapter.B, std=1e-3)
    sums = {n: (a.base.weight.float() + a.delta()).detach() for n, a in adaptation.adapters.items()}
    model = adaptation.merge(dtype=torch.float32)
    assert all(torch.equal(model.get_submodule(n).weight, W) for n, W in sums.items())
    assert max(adaptation.merge_error.lost.values()) < 1e-3


def test_a_small_update_in_bfloat16_is_warned_of_with_numbers():
    adaptation = rw.adapt(LLAMA.build().bfloat16(), rw.LoRA(rank=2))
    for adapter in adaptation.adapters.values():
        nn.init.normal_(adapter.B, std=1e-3)
    with pytest.warns(UserWarning, match=r"more than 10% of the update in 14 of 14 layers \(median \d+%, largest \d+%"):
        adaptation.merge()


def test_float32_loses_nothing_to_speak_of_and_an_untrained_adapter_nothing_at_all():
    adaptation = trained(LLAMA, rw.LoRA(rank=2, alpha=8))
    adaptation.merge()
    assert adaptation.merge_error is not None and max(adaptation.merge_error.lost.values()) < 1e-4
    untrained = rw.adapt(LLAMA.build().bfloat16(), rw.LoRA(rank=2))
    untrained.merge()
    assert untrained.merge_error is not None and set(untrained.merge_error.lost.values()) == {0.0}


@pytest.mark.parametrize("name", ["llama-gqa", "bert", "bart"])
def test_samples_are_compared_end_to_end(name: str):
    architecture = MODELS[name]
    adaptation = trained(architecture, rw.LoRA(rank=2, alpha=8))
    sample = architecture.batch()
    adapted = outputs(adaptation.model, sample)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = adaptation.merge(dtype=torch.bfloat16, samples=[sample])
    merged = outputs(model, sample).float()
    found = adaptation.merge_error.end_to_end
    assert found is not None
    assert found.distributions == (adapted.numel() // adapted.shape[-1])
    assert found.difference == pytest.approx(float((adapted - merged).abs().max()))
    p, log_q = adapted.double().softmax(-1), merged.double().log_softmax(-1)
    kl = nn.functional.kl_div(log_q, p, reduction="none").sum(-1)
    assert found.kl_mean == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found.kl_largest == pytest.approx(float(kl.max()), rel=1e-4)
    assert found.same_top == pytest.approx(float((adapted.argmax(-1) == merged.argmax(-1)).float().mean()))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_padding_is_no_distribution_and_spans_are_two():
    sample = inputs(ENCODER)
    model = BertForQuestionAnswering(
        BertConfig(**(ENCODER.build().config.to_dict() | {"id2label": {0: "from", 1: "to"}}))
    )
    adaptation = rw.adapt(model, rw.LoRA(rank=2))
    adaptation.merge(samples=[sample])
    assert adaptation.merge_error.end_to_end.distributions == 4
    assert adaptation.merge_error.end_to_end.difference == 0
    llama = rw.adapt(LLAMA.build(), rw.LoRA(rank=2))
    llama.merge(samples=[{"input_ids": sample["input_ids"], "attention_mask": sample["attention_mask"]}])
    assert llama.merge_error.end_to_end.distributions == int(sample["attention_mask"].sum())


def test_samples_need_logits_and_nothing_is_merged_without():
    model = ENCODER.build().base_model
    adaptation = rw.adapt(model, rw.LoRA(rank=2))
    with pytest.raises(rw.StateError, match="gives no logits"):
        adaptation.merge(samples=[inputs(ENCODER)])
    assert adaptation.adapters


def test_a_zero_divergence_is_zero():
    same = torch.randn(3, 7)
    found = compared([same], [same])
    assert found.kl_largest == found.difference == 0 and found.same_top == 1


def test_an_update_that_is_not_finite_is_not_merged():
    adaptation = rw.adapt(LLAMA.build(), rw.LoRA(rank=2))
    name, adapter = list(adaptation.adapters.items())[3]
    with torch.no_grad():
        adapter.B[0, 0] = torch.nan
    before = {n: t.clone() for n, t in adaptation.model.state_dict().items()}
    with pytest.raises(rw.StateError, match=f"1 of 14 layers hold values that are NaN or infinite, {name} first"):
        adaptation.merge()
    assert adaptation.adapters and adaptation.merge_error is None
    after = adaptation.model.state_dict()
    assert all(torch.equal(tensor, after[n]) or n.endswith(".B") for n, tensor in before.items())
