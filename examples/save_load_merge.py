"""Save an adapter, load it onto a fresh copy of the base, and merge it into plain weights.

A tiny BERT with random weights stands in for a real model; no download, seconds.
"""

import copy
import tempfile
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

import rankwise as rw

torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
base = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=2, **sizes)).eval()
words = torch.randint(0, 64, (256, 8))
labels = (words[:, 0] >= 32).long()

model = copy.deepcopy(base)
adaptation = rw.adapt(model, rw.LoRA(rank=4, alpha=8, targets="attention"))
optimizer = torch.optim.AdamW(adaptation.parameters(), lr=5e-3)
with adaptation.attached(optimizer):  # LoRA decides nothing while it trains, so it needs no total_steps
    for _ in range(50):
        model(input_ids=words, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def outputs(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=words).logits


with tempfile.TemporaryDirectory() as folder:
    adaptation.save(Path(folder) / "adapter")
    for file in sorted(Path(folder).rglob("*.*")):
        print(f"{file.name}: {file.stat().st_size:,} bytes")
    loaded = rw.load(copy.deepcopy(base), Path(folder) / "adapter")

trained = outputs(model)
print("loaded equals trained:", torch.equal(outputs(loaded.model), trained))
plain = loaded.merge()
print("merged, the largest difference is", (outputs(plain) - trained).abs().max().item())
print("its class is", type(plain).__name__, "and its query layer is", plain.bert.encoder.layer[0].attention.self.query)
