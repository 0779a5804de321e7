"""What `adapt` and `load` refuse before they change anything, and models that change after it."""

from pathlib import Path

import accelerate
import pytest
import torch
from torch import nn

import rankwise as rw
from contract.models import ENCODER
from contract.runs import outputs, train
from rankwise.adapter import is_adapted
from toy import mlp


def offloaded() -> nn.Module:
    """Its weights lie elsewhere, and come when a layer is called."""
    model = accelerate.cpu_offload(mlp(), torch.device("cpu"))
    assert isinstance(model, nn.Module)
    return model


@pytest.mark.parametrize("build", [lambda: mlp().to("meta"), offloaded], ids=["meta", "offloaded"])
def test_a_model_whose_weights_are_not_here(build, tmp_path: Path):
    message = r"3 of 3 layers have no weights here, 0 first"
    model = build()
    with pytest.raises(rw.StateError, match=message):
        rw.adapt(model, rw.AdaLoRA(rank=4, target_rank=2))
    rw.adapt(mlp(), rw.LoRA(rank=2)).save(tmp_path / "adapter")
    with pytest.raises(rw.StateError, match=message):
        rw.load(model, tmp_path / "adapter")
    assert not is_adapted(model)
    assert all(p.requires_grad for p in model.parameters())


def test_disabled_after_the_model_has_taken_another_type():
    model = ENCODER.build()
    adaptation, base = rw.adapt(model, rw.LoRA(rank=2)), ENCODER.build().to(torch.bfloat16)
    train(adaptation, ENCODER.batch())
    model.to(torch.bfloat16)
    with adaptation.disabled():
        assert torch.equal(outputs(model, ENCODER.batch()), outputs(base, ENCODER.batch()))
    assert not torch.equal(outputs(model, ENCODER.batch()), outputs(base, ENCODER.batch()))
