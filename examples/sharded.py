"""AdaLoRA under FSDP2: `torchrun --nproc_per_node 2 examples/sharded.py`, or alone in one process. On CPU, seconds.

Every process sees its own rows; the masks are decided from all of them, and come out the same everywhere.
"""

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import BertConfig, BertForSequenceClassification

import rankwise as rw

if "RANK" in os.environ:  # torchrun sets it
    dist.init_process_group("gloo")
else:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (dist.get_world_size(),))

torch.manual_seed(0)  # the same on every process: each keeps a slice of the same tensors
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=2, hidden_dropout_prob=0.0, **sizes))
words = torch.randint(0, 64, (256, 8))
labels = (words[:, 0] >= 32).long()

adaptation = rw.adapt(model, rw.AdaLoRA(rank=6, target_rank=4))
placement = rw.across_ranks(adaptation.adapters.values(), mesh.size())  # optional: less to send
for layer in model.bert.encoder.layer:
    fully_shard(layer, mesh=mesh, shard_placement_fn=placement)
fully_shard(model, mesh=mesh, shard_placement_fn=placement)

steps = 100
optimizer = torch.optim.AdamW(adaptation.parameters(), lr=5e-3)  # after fully_shard, which makes other parameters
with adaptation.attached(optimizer, total_steps=steps):
    for _ in range(steps):
        rows = torch.randint(0, len(words), (32,)).chunk(dist.get_world_size())[dist.get_rank()]
        loss = model(input_ids=words[rows], labels=labels[rows]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

adaptation.save("sharded-adapter")  # by all: each gives its part, and the first one writes
if dist.get_rank() == 0:
    print("live ranks by layer:")
    for name, rank in adaptation.ranks().items():
        print(f"  {rank}  {name}")
dist.destroy_process_group()
