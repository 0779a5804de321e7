"""What `adapt` and `load` refuse before they change anything."""

from pathlib import Path

import accelerate
import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.adapter import is_adapted
from toy import mlp


def offloaded() -> nn.Module:
    """Its weights lie elsewhere, and come when a layer is called."""
    model = accelerate.cpu_offload(mlp(), torch.device("cpu"))
    assert isinstance(model, nn.Module)
    return model


@pytest.mark.parametrize("build", [lambda: mlp().to("meta"), offloaded], ids=["meta", "offloaded"])
def test_a_model_whose_weights_are_not_here(build, tmp_path: Path):
    message = r"6 parameters of the model have no values here, 0.weight first"
    model = build()
    with pytest.raises(rw.StateError, match=message):
        rw.adapt(model, rw.AdaLoRA(rank=4, target_rank=2))
    rw.adapt(mlp(), rw.LoRA(rank=2)).save(tmp_path / "adapter")
    with pytest.raises(rw.StateError, match=message):
        rw.load(model, tmp_path / "adapter")
    assert not is_adapted(model)
    assert all(p.requires_grad for p in model.parameters())
