"""The engine beside PEFT, the published implementation that can be installed.

PEFT adds the penalty to the loss, so nothing is clipped here, and scales by α / (r + 1e-5), so our α is a little less.
AdaLoRA runs in float64: the un-squared norm has a kink at orthonormality, where two correct float32 runs part.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import rankwise as rw
from contract.models import BY_NAME
from rankwise.methods.lora import LoRALayer
from rankwise.methods.svd_lora import SVDLayer
from sampled import some
from toy import mlp, stream

STEPS, RANK, TARGET, ALPHA = 210, 6, 3, 8.0
OURS = ALPHA * RANK / (RANK + 1e-5)  # PEFT's own 1e-5

# ------------------------------------------------------------------ AdaLoRA


class Regression(nn.Module):
    """Returns an object with a loss, for PEFT adds its penalty to that."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(0, layers=2)

    def forward(self, x: Tensor, y: Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=nn.functional.mse_loss(self.net(x), y))


def regression_batches() -> list[dict[str, Tensor]]:
    return [{"x": x.double(), "y": y.double()} for x, y in stream(STEPS)]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=30, max_position_embeddings=16))


def llama_batches() -> list[dict[str, Tensor]]:
    ids = torch.randint(0, 30, (STEPS, 4, 6))
    ids[:, :, 1::2] = (3 * ids[:, :, ::2] + 1) % 30  # half of it can be learnt
    return [{"input_ids": i, "labels": i} for i in ids]


LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("build", "batches", "targets"),
    some([(Regression, regression_batches, ["0", "2"]), (llama, llama_batches, LLAMA)], kept=(1,)),
    ids=["mlp", "llama"],
)
@pytest.mark.parametrize(
    ("tinit", "tfinal", "every", "gamma", "weight_decay"),
    some([(20, 60, 1, 0.1, 0.0), (25, 53, 7, 0.3, 0.01)], kept=(1,)),  # 7 does not divide T - t_f = 157
)
def test_adalora_keeps_the_triplets_that_peft_keeps(
    build: Any, batches: Any, targets: list[str], tinit: int, tfinal: int, every: int, gamma: float, weight_decay: float
):
    schedule = {"tinit": tinit, "tfinal": tfinal, "deltaT": every, "total_step": STEPS, "orth_reg_weight": gamma}
    config = AdaLoraConfig(init_r=RANK, target_r=TARGET, lora_alpha=ALPHA, target_modules=targets, **schedule)
    torch.manual_seed(1)
    published = get_peft_model(build(), config).base_model.double()
    method = rw.AdaLoRA(
        rank=RANK,
        target_rank=TARGET,
        alpha=OURS,
        targets=targets,
        also_train=[],
        warmup=tinit,
        cooldown=tfinal,
        every=every,
        orthogonality=gamma,
        penalty="mean_norm",
        score_at="after_step",
        ties="drop",
        mask="release",
    )
    adaptation = rw.adapt(build(), method)
    adaptation.model.double()
    theirs = {name: published.model.get_submodule(name) for name in adaptation.adapters}
    for name, adapter in adaptation.adapters.items():
        assert isinstance(adapter, SVDLayer)
        with torch.no_grad():
            adapter.P.copy_(theirs[name].lora_B["default"])
            adapter.lam.copy_(theirs[name].lora_E["default"].flatten())
            adapter.Q.copy_(theirs[name].lora_A["default"])

    settings = {"lr": 1e-2, "weight_decay": weight_decay}
    optimizer = torch.optim.AdamW(adaptation.parameters(), **settings)
    their_optimizer = torch.optim.AdamW([p for p in published.parameters() if p.requires_grad], **settings)
    lives = set()
    with adaptation.attached(optimizer, total_steps=STEPS):
        for t, batch in enumerate(batches()):
            loss = adaptation.model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

            published(**batch).loss.backward()
            their_optimizer.step()
            published.update_and_allocate(t)
            their_optimizer.zero_grad()

            for name, adapter in adaptation.adapters.items():
                E = theirs[name].lora_E["default"].flatten()
                assert (adapter.lam != 0).tolist() == (E != 0).tolist(), (t, name)
                torch.testing.assert_close(adapter.lam, E, rtol=1e-4, atol=1e-6, msg=f"{t} {name}")
            lives.add(sum(int((a.lam != 0).sum()) for a in adaptation.adapters.values()))
    assert min(lives) == TARGET * len(theirs) == sum(adaptation.ranks().values()) and len(lives) > 3


# ------------------------------------------------------------------ LoRA


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize(
    ("name", "targets"),
    [("bert", ["query", "value", "intermediate.dense"]), ("gpt2", ["c_attn", "c_fc"]), ("llama-gqa", LLAMA)],
)
def test_lora_is_pefts(name: str, targets: list[str], rank_stabilized: bool):
    row = BY_NAME[name]
    settings = {"target_modules": targets, "fan_in_fan_out": name == "gpt2", "use_rslora": rank_stabilized}
    published = get_peft_model(row.build(), LoraConfig(r=4, lora_alpha=16, **settings)).base_model
    method = rw.LoRA(rank=4, alpha=16, targets=targets, also_train=[], rank_stabilized=rank_stabilized)
    adaptation = rw.adapt(row.build(), method)
    theirs = {n: published.model.get_submodule(n) for n in adaptation.adapters}
    for n, adapter in adaptation.adapters.items():
        assert isinstance(adapter, LoRALayer)
        with torch.no_grad():
            theirs[n].lora_B["default"].weight.normal_(std=0.1)
            adapter.B.copy_(theirs[n].lora_B["default"].weight)
            adapter.A.copy_(theirs[n].lora_A["default"].weight)
    ours, peft = adaptation.model(**row.batch()), published(**row.batch())
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(ours.logits, peft.logits, **tolerance)
    ours.loss.backward()
    peft.loss.backward()
    for n, adapter in adaptation.adapters.items():
        torch.testing.assert_close(adapter.A.grad, theirs[n].lora_A["default"].weight.grad, **tolerance)
        torch.testing.assert_close(adapter.B.grad, theirs[n].lora_B["default"].weight.grad, **tolerance)
    assert len(theirs) == sum("lora_A" in n for n, _ in published.named_parameters())
