"""Training runs that can be carried out by one process or by several, with the same global batch.

Everything here is called by name in other processes, and returns plain values and whole tensors.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import toy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import rankwise as rw
from rankwise.adapter import Method

STEPS = 24
SHORT = {"warmup": 4, "cooldown": 8, "every": 2}
ADALORA = {"rank": 4, "target_rank": 2, **SHORT}
METHODS: dict[str, Method] = {
    "lora": rw.LoRA(rank=3),
    "adalora": rw.AdaLoRA(**ADALORA),
    "adalora-odd": rw.AdaLoRA(**(ADALORA | {"rank": 3, "target_rank": 1})),
    "adalora-paper": rw.AdaLoRA(
        **ADALORA, penalty="sum_of_squares", score_at="before_step", mask="hold", orthogonality=0.01
    ),
    "adalora-raw": rw.AdaLoRA(**ADALORA, score="raw_sensitivity"),
    "adalora-magnitude": rw.AdaLoRA(**ADALORA, score="magnitude"),
    "aflora": rw.AFLoRA(rank=3, scope="all", **SHORT),
    "aflora-quantile": rw.AFLoRA(rank=3, scope="all", freeze_rule="elementwise_quantile", **SHORT),
}


@dataclass(frozen=True)
class Run:
    """One run. `wrap`: "none", "ddp", "fsdp2" (each layer sharded) or "fsdp2-root" (the model as one unit)."""

    method: str
    wrap: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)  # of DistributedDataParallel
    checkpointing: bool = False
    accumulation: int = 1
    plain_branch: bool = False  # dropout takes the path that is not fused; at this rate it drops nothing
    long_side: bool = False  # FSDP2 cuts P and Q across their ranks
    poisoned: int | None = None  # the step in which one row of the last process is infinite
    until: int = STEPS
    save_at: Mapping[int, str] = field(default_factory=dict)
    resume_from: str | None = None
    head: bool = False


@dataclass
class Outcome:
    """What a run decided after every step, and what it ended with."""

    decisions: list[tuple[dict[str, str], list[str]]]  # (masks, frozen) after each step
    lines: list[dict[str, Any]]
    weights: dict[str, Tensor]
    moved_frozen: list[str]  # frozen tensors that moved, or that still hold a gradient or moments
    gaps: list[float]  # between the scores on either side of the cut, relative, for each decision
    requires_grad: list[bool] = field(default_factory=list)  # of the frozen tensors, at the end


class Net(nn.Module):
    """A small regression with a head that is trained in full."""

    def __init__(self, checkpointing: bool) -> None:
        super().__init__()
        self.body = toy.mlp()
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.body, x, use_reentrant=False) if self.checkpointing else self.body(x)
        return y


def made(run: Run) -> tuple[rw.Adaptation, nn.Module]:
    """The adaptation, and the module whose forward trains it."""
    method = METHODS[run.method]
    if run.plain_branch:
        method = replace(method, dropout=1e-12)
    if run.head:
        method = replace(method, targets=["body.0", "body.2"], also_train=["body.4"])
    net = Net(run.checkpointing)
    torch.manual_seed(3)
    adaptation = rw.load(net, run.resume_from) if run.resume_from else rw.adapt(net, method)
    with torch.no_grad():  # an AdaLoRA or AFLoRA update that starts at 0 starts with ties
        for adapter in adaptation.adapters.values():
            for name, tensor in adapter.named_parameters(recurse=False):
                if name in ("lam", "s_b", "B") and not run.resume_from:
                    tensor.add_(0.1 * torch.randn(tensor.shape))
    if run.wrap == "ddp":
        return adaptation, DistributedDataParallel(net, **run.options)
    if run.wrap.startswith("fsdp2"):
        place = rw.distributed.across_ranks(adaptation.adapters.values()) if run.long_side else None
        for module in net.body if run.wrap == "fsdp2" else ():
            if any(True for _ in module.parameters()):
                fully_shard(module, shard_placement_fn=place)
        fully_shard(net, shard_placement_fn=place)
    return adaptation, net


def share(batch: toy.Example) -> list[toy.Example]:
    """This process's part of the global batch."""
    if not dist.is_initialized():
        return [batch]
    return [tuple(t.chunk(dist.get_world_size())[dist.get_rank()] for t in batch)]  # type: ignore[list-item]


def train(run: Run) -> Outcome:
    """Carry a run out, in this process or with the others."""
    if run.wrap == "none" and dist.is_initialized():
        raise AssertionError("a run of one process is for the process of the tests")
    adaptation, net = made(run)
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=5e-3, weight_decay=0.1)
    outcome = Outcome([], [], {}, [], [])
    first = 0
    if run.resume_from:
        first = adaptation._saved_run["steps"]  # type: ignore[index]
        name = f"optimizer-{dist.get_rank() if run.wrap.startswith('fsdp2') else 0}.pt"
        optimizer.load_state_dict(torch.load(f"{run.resume_from}.{name}", weights_only=False))
    batches = list(toy.stream(STEPS))
    with adaptation.attached(optimizer, STEPS):
        for step in range(first, run.until):
            frozen = snapshot(adaptation)
            for part in parts_of(run, step, batches[step]):
                loss_of_share(run, step, net, part, last=part is None)
            optimizer.step()
            check_frozen(adaptation, optimizer, frozen, outcome)
            optimizer.zero_grad()
            outcome.gaps += gaps(adaptation, outcome)
            outcome.decisions.append((masks(adaptation), adaptation.frozen()))
            if step in run.save_at:
                adaptation.save(run.save_at[step])
                rank = dist.get_rank() if dist.is_initialized() else 0
                torch.save(optimizer.state_dict(), f"{run.save_at[step]}.optimizer-{rank}.pt")
    outcome.lines = adaptation.history.lines
    tensors = {n: t.detach() for n, t in net.named_parameters() if t.requires_grad}
    outcome.weights = {n.removeprefix("module."): whole(t) for n, t in tensors.items()}
    outcome.requires_grad = [parameter(adaptation, name).requires_grad for name in adaptation.frozen()]
    return outcome
