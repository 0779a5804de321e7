"""AdaLoRA under transformers' own Trainer: one callback, and the number of steps comes from the Trainer.

A tiny BERT with random weights learns whether the first word of a sentence has a high number; no download, seconds.
"""

import tempfile

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import rankwise as rw


class Sentences(Dataset):
    """256 rows of eight random words each."""

    def __init__(self) -> None:
        self.words = torch.randint(0, 64, (256, 8))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.words[row], "labels": (self.words[row, 0] >= 32).long()}


torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=2, **sizes))
adaptation = rw.adapt(model, rw.AdaLoRA(rank=6, target_rank=4))

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=60, learning_rate=5e-3, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False
    )
    callback = rw.AdaptationCallback(adaptation)
    Trainer(model=model, args=arguments, train_dataset=Sentences(), callbacks=[callback]).train()
    allocations = [line for line in adaptation.history.lines if line["event"] == "allocated"]

for line in allocations[:: len(allocations) // 5]:
    print(f"after step {line['step']}: {line['live']} ranks live")
print(adaptation)
