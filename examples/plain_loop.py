"""AdaLoRA in a plain training loop: a rank budget that falls while the model learns.

A tiny BERT with random weights learns whether the first word of a sentence has a high number; no download, seconds.
"""

import torch
from transformers import BertConfig, BertForSequenceClassification

import rankwise as rw

torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=2, **sizes))
words = torch.randint(0, 64, (256, 8))
labels = (words[:, 0] >= 32).long()

adaptation = rw.adapt(model, rw.AdaLoRA(rank=6, target_rank=4))
print(adaptation)

steps = 200
optimizer = torch.optim.AdamW(adaptation.parameters(), lr=5e-3)
with adaptation.attached(optimizer, total_steps=steps):
    for step in range(steps):
        rows = torch.randint(0, len(words), (32,))
        loss = model(input_ids=words[rows], labels=labels[rows]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 40 == 39:
            print(f"step {step + 1}: loss {loss.item():.3f}, {sum(adaptation.ranks().values())} ranks live")

print("live ranks by layer:")
for name, rank in adaptation.ranks().items():
    print(f"  {rank}  {name}")

before = adaptation.count()
adaptation.compact(optimizer)  # dead ranks leave the factors and the optimizer's moments
held = sum(p.numel() for p in adaptation.parameters())
print(f"{before:,} parameters live, {held:,} held after compacting")
