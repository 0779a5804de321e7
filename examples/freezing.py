"""AFLoRA: projections stop training one after the other, and their optimizer state goes with them.

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

adaptation = rw.adapt(model, rw.AFLoRA(rank=4, scope="all", every=5))
steps = 150
optimizer = torch.optim.AdamW(adaptation.parameters(), lr=1e-2)
with adaptation.attached(optimizer, total_steps=steps):
    for step in range(steps):
        rows = torch.randint(0, len(words), (32,))
        loss = model(input_ids=words[rows], labels=labels[rows]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9 and step < 60:
            print(
                f"step {step + 1}: loss {loss.item():.3f}, {len(adaptation.frozen())} projections frozen, "
                f"{adaptation.count():,} parameters train, {len(optimizer.state)} tensors have optimizer state"
            )

print("\nwho froze when (step, projections):")
for line in adaptation.history.lines:
    if line["event"] == "froze":
        names = [name.removeprefix("bert.encoder.") for name in line["frozen"]]
        print(f"  {line['step']:3d}  {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else ""))
