"""Short runs on tiny models, as a user would write them."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

import rankwise as rw
from contract.models import Architecture, Batch
from rankwise.adapter import Method

STEPS = 12


def outputs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Logits in evaluation mode."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(**batch).logits
    model.train(was_training)
    return logits


def adamw(adaptation: rw.Adaptation, **settings: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(adaptation.parameters(), **({"lr": 1e-2, "weight_decay": 0.01} | settings))


def step(adaptation: rw.Adaptation, optimizer: torch.optim.Optimizer, batch: Batch) -> Tensor:
    """One step of training; the loss, whose graph is gone."""
    loss: Tensor = adaptation.model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def train(adaptation: rw.Adaptation, batch: Batch, steps: int = STEPS) -> None:
    """The first `steps` steps of a run of STEPS."""
    adaptation.model.train()
    optimizer = adamw(adaptation)
    with adaptation.attached(optimizer, total_steps=STEPS):
        for _ in range(steps):
            step(adaptation, optimizer, batch)


def trained(architecture: Architecture, method: Method, steps: int = STEPS) -> rw.Adaptation:
    adaptation = rw.adapt(architecture.build(), method)
    train(adaptation, architecture.batch(), steps)
    return adaptation


def gradients(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """Of one backward pass in training mode, by parameter name."""
    model.train()
    model.zero_grad()
    model(**batch).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def peft_reads(base: PreTrainedModel, folder: Path) -> PeftModel:
    """The base with a LoRA folder, as stock PEFT loads it."""
    return PeftModel.from_pretrained(base, folder)


def transformers_reads(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base with a LoRA folder, as transformers loads it by itself."""
    missing = base.load_adapter(str(folder)).missing_keys
    assert not missing, missing
    return base
