"""Real adapters of PEFT's: trained by PEFT for a few steps, saved by PEFT, computed with by PEFT."""

from pathlib import Path

import peft
import torch
from peft import AdaLoraConfig, PeftConfig
from torch import Tensor

from contract.models import Architecture, Batch


def saved_by_peft(architecture: Architecture, config: PeftConfig, folder: Path, steps: int = 4) -> Tensor:
    """Train, save and load again with PEFT alone. Returns the logits of what PEFT loaded."""
    torch.manual_seed(3)
    model = peft.get_peft_model(architecture.build(), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for step in range(steps):
        model(**architecture.batch()).loss.backward()
        optimizer.step()
        if isinstance(config, AdaLoraConfig):
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    model.save_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(architecture.build(), folder).eval()
    with torch.no_grad():
        logits: Tensor = loaded(**inputs(architecture.batch(), config)).logits
    return logits


def inputs(batch: Batch, config: PeftConfig) -> Batch:
    """Without the labels for PEFT's AdaLoRA: loaded for inference, it cannot compute a loss."""
    left_out = ("labels",) if isinstance(config, AdaLoraConfig) else ()
    return {name: tensor for name, tensor in batch.items() if name not in left_out}
