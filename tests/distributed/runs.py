"""Training runs that can be carried out by one process or by several, with the same global batch.

Everything here is called by name in other processes, and returns plain values and whole tensors.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import rankwise as rw
import toy
from rankwise.adapter import Method
from rankwise.methods.budget import BudgetController

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
# Of the batches, so that no decision is near a tie: the scores on either side of a cut differ by 1 % at least.
SEEDS = {"adalora": 7, "adalora-odd": 5, "adalora-raw": 4}


@dataclass(frozen=True)
class Run:
    """One run. `wrap`: "none", "ddp", "fsdp2" (each layer sharded) or "fsdp2-root" (the model as one unit)."""

    method: str
    wrap: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)  # of DistributedDataParallel
    checkpointing: bool = False
    accumulation: int = 1
    plain_branch: bool = False  # hooks on the base layers, which have the path taken that is not fused
    long_side: bool = False  # FSDP2 cuts P and Q across their ranks
    poisoned: int | None = None  # the step in which one row of the last process is infinite
    head: bool = False  # a layer is trained in full
    save_at: int | None = None  # the step after which `folder` is written
    folder: str = ""
    resume_from: str = ""


@dataclass
class Outcome:
    """What a run decided after every step, and what it ended with."""

    decisions: list[tuple[dict[str, str], list[str]]] = field(default_factory=list)  # masks, and names of the frozen
    lines: list[dict[str, Any]] = field(default_factory=list)  # of the history
    weights: dict[str, Tensor] = field(default_factory=dict)
    alive: list[str] = field(default_factory=list)  # frozen tensors that moved, or hold a gradient or moments
    gaps: list[float] = field(default_factory=list)  # between the scores on either side of each cut, relative
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
    if run.head:
        method = replace(method, targets=["body.0", "body.2"], also_train=["body.4"])
    net = Net(run.checkpointing)
    torch.manual_seed(3)
    adaptation = rw.load(net, run.resume_from) if run.resume_from else rw.adapt(net, method)
    for adapter in adaptation.adapters.values() if run.plain_branch else ():
        adapter.base.register_forward_hook(lambda *_: None)
    with torch.no_grad():  # an AdaLoRA or AFLoRA update that starts at 0 starts with ties
        for adapter in adaptation.adapters.values():
            for name, tensor in adapter.named_parameters(recurse=False):
                if name in ("lam", "s_b", "B") and not run.resume_from:
                    tensor.add_(0.1 * torch.randn(tensor.shape))
    if run.wrap == "ddp":
        return adaptation, DistributedDataParallel(net, **run.options)
    if run.wrap.startswith("fsdp2"):
        place = rw.across_ranks(adaptation.adapters.values(), dist.get_world_size()) if run.long_side else None
        for module in net.body if run.wrap == "fsdp2" else ():
            if any(True for _ in module.parameters()):
                fully_shard(module, shard_placement_fn=place)
        fully_shard(net, shard_placement_fn=place)
    return adaptation, net


def share(batch: toy.Example) -> toy.Example:
    """This process's part of a batch, of equal size in all."""
    if not dist.is_initialized():
        return batch
    x, y = (t.chunk(dist.get_world_size())[dist.get_rank()] for t in batch)
    return x, y


def backward(run: Run, step: int, net: nn.Module, batch: toy.Example) -> None:
    """The gradients of one global batch, in one or several passes."""
    passes = [share(part) for part in zip(*(t.chunk(run.accumulation) for t in batch), strict=True)]
    for i, (x, y) in enumerate(passes):
        if step == run.poisoned and (not dist.is_initialized() or dist.get_rank() == 1):
            x = x.clone()
            x[-1] = torch.inf
        last = i == len(passes) - 1
        held_back = net.no_sync() if isinstance(net, DistributedDataParallel) and not last else contextlib.nullcontext()
        with held_back:
            (nn.functional.mse_loss(net(x), y) / len(passes)).backward()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor().clone() if isinstance(tensor, DTensor) else tensor.clone()


def frozen_tensors(adaptation: rw.Adaptation) -> dict[str, nn.Parameter]:
    split = {name: name.rpartition(".") for name in adaptation.frozen()}
    return {name: adaptation.adapters[layer].get_parameter(own) for name, (layer, _, own) in split.items()}


def gap(adaptation: rw.Adaptation) -> float:
    """Between the scores on either side of the next cut, relative to them: 0 would be a tie."""
    controller = adaptation.controller
    if not isinstance(controller, BudgetController):
        return 1.0
    with torch.no_grad():
        scores = torch.cat(controller._unit_scores()).sort(descending=True).values
    live = sum(adaptation.ranks().values())
    if live == scores.numel():
        return 1.0
    kept, dropped = scores[live - 1 : live + 1].tolist()
    return (kept - dropped) / kept


def train(run: Run) -> Outcome:
    """Carry a run out, in this process or with the others."""
    adaptation, net = made(run)
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=5e-3, weight_decay=0.1)
    outcome = Outcome()
    rank = dist.get_rank() if run.wrap.startswith("fsdp2") else 0  # under DDP every process has the same state
    first = 0
    if run.resume_from:
        state = torch.load(f"{run.resume_from}.optimizer-{rank}.pt", weights_only=False)
        first = state.pop("steps")
        optimizer.load_state_dict(state)
    batches = list(toy.stream(STEPS, SEEDS.get(run.method, 0)))
    with adaptation.attached(optimizer, STEPS):
        for step in range(first, STEPS):
            before = {name: whole(p.detach()) for name, p in frozen_tensors(adaptation).items()}
            backward(run, step, net, batches[step])
            optimizer.step()
            for name, p in frozen_tensors(adaptation).items():
                if (
                    p.grad is not None
                    or p in optimizer.state
                    or not whole(p.detach()).equal(before.get(name, whole(p.detach())))
                ):
                    outcome.alive.append(f"{step} {name}")
            optimizer.zero_grad()
            adaptation.history.flush()
            if any((e["step"], e["event"]) == (step, "allocated") for e in adaptation.history.lines[-1:]):
                outcome.gaps.append(gap(adaptation))
            masks = {name: "".join("01"[m] for m in a.live.tolist()) for name, a in adaptation.adapters.items()}
            outcome.decisions.append((masks, adaptation.frozen()))
            if step == run.save_at:
                adaptation.save(run.folder)
                torch.save(optimizer.state_dict() | {"steps": step + 1}, f"{run.folder}.optimizer-{rank}.pt")
    outcome.lines = adaptation.history.lines
    outcome.weights = {n: whole(p.detach()) for n, p in adaptation.model.named_parameters()}
    outcome.requires_grad = [p.requires_grad for p in frozen_tensors(adaptation).values()]
    return outcome


def assert_alike(one: Outcome, other: Outcome, *, exactly: bool) -> None:
    """The same decisions at every step; weights bit for bit, or as near as sums in another order come."""
    assert one.decisions == other.decisions
    keys = ("step", "event", "masks", "frozen", "budget", "live", "share")
    assert [[e.get(k) for k in keys] for e in one.lines] == [[e.get(k) for k in keys] for e in other.lines]
    assert one.weights.keys() == other.weights.keys()
    for name, weight in one.weights.items():
        if exactly:
            assert torch.equal(weight, other.weights[name]), name
        else:
            torch.testing.assert_close(weight, other.weights[name], rtol=1e-3, atol=1e-5)
    if exactly:
        assert one.lines == other.lines
