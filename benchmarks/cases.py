"""One training step of one method on one model, ready to be timed: ours, PEFT's, full fine-tuning, and the floor.

The floor is back-propagation through the frozen model without any adapter: what no adapter method can go below.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.adapter import Method

RUN = 10_000  # steps that schedules are told of; the benchmark runs in their first, deciding phase
DECIDING = {"warmup": 0, "cooldown": RUN // 2}


@dataclass
class Case:
    """A named step. `close` lets go of hooks."""

    name: str
    step: Callable[[], Tensor]
    trainable: int
    close: Callable[[], None]


@dataclass(frozen=True)
class Problem:
    """A model, what it is fed, and the type it computes in; the model's weights are shared by all cases of it."""

    model: nn.Module
    batch: dict[str, Tensor]
    autocast: torch.dtype | None = None

    def alike(self) -> nn.Module:
        """A copy of the modules, frozen, around the same weights: ten cases of one model fit into memory."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return copy.deepcopy(self.model, {id(t): t for t in tensors}).requires_grad_(False)

    def linears(self) -> list[str]:
        """The layers that rankwise adapts, so that every peer adapts the same."""
        return list(rw.adapt(self.alike(), rw.LoRA(rank=1, also_train=())).adapters)

    def loss(self, model: nn.Module) -> Tensor:
        device = next(iter(self.batch.values())).device.type
        context: AbstractContextManager[Any] = (
            nullcontext() if self.autocast is None else torch.autocast(device, self.autocast)
        )
        with context:
            loss: Tensor = model(**self.batch).loss
        return loss


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True)  # as a loop over 420 tensors it takes 50 ms of a step


def _case(name: str, problem: Problem, model: nn.Module, after: Callable[[int], None] = lambda _: None) -> Case:
    """Forward, backward, optimizer; `after` is what a method asks its user to call behind the optimizer's step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _adamw(parameters)
    steps = 0

    def step() -> Tensor:
        nonlocal steps
        loss = problem.loss(model)
        loss.backward()
        optimizer.step()
        after(steps)
        optimizer.zero_grad()
        steps += 1
        return loss.detach()

    return Case(name, step, sum(p.numel() for p in parameters), lambda: None)


def floor(problem: Problem) -> Case:
    model = problem.alike()
    # as with adapters in the first layer, every layer has to hand a gradient on
    model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, out: out.requires_grad_())

    def step() -> Tensor:
        loss = problem.loss(model)
        loss.backward()
        return loss.detach()

    return Case("floor", step, 0, lambda: None)


def full(problem: Problem) -> Case:
    return _case("full fine-tuning", problem, copy.deepcopy(problem.model).requires_grad_(True))


def ours(name: str, method: Method, problem: Problem, compiled: bool = False) -> Case:
    model = problem.alike()
    adaptation = rw.adapt(model, method)
    optimizer = _adamw(adaptation.parameters())
    attached = ExitStack()
    attached.enter_context(adaptation.attached(optimizer, RUN))
    call = torch.compile(model) if compiled else model

    def step() -> Tensor:
        loss = problem.loss(call)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Case(name, step, adaptation.count(), attached.close)


def _peft(name: str, problem: Problem, config: peft.PeftConfig) -> Case:
    config.target_modules = set(problem.linears())
    adapted = peft.get_peft_model(problem.alike(), config)
    allocates = isinstance(config, peft.AdaLoraConfig)
    return _case(name, problem, adapted, adapted.base_model.update_and_allocate if allocates else lambda _: None)


LORA = rw.LoRA(rank=8, also_train=())
LORA_DROPOUT = rw.LoRA(rank=8, dropout=0.05, also_train=())
ADALORA = rw.AdaLoRA(rank=12, target_rank=8, every=50, also_train=(), **DECIDING)
AFLORA = rw.AFLoRA(rank=4, warmup=RUN // 2, cooldown=0, also_train=())
AFLORA_FROZEN = rw.AFLoRA(rank=4, scope="none", also_train=())  # as after all projections froze: only vectors train


def peft_lora(problem: Problem, dropout: float = 0.0) -> Case:
    name = "PEFT LoRA r=8" + (f", dropout {dropout}" if dropout else "")
    return _peft(name, problem, peft.LoraConfig(r=8, lora_alpha=8, lora_dropout=dropout))


def peft_adalora(problem: Problem) -> Case:
    schedule = {"tinit": 0, "tfinal": RUN // 2, "deltaT": 50, "total_step": RUN}
    config = peft.AdaLoraConfig(init_r=12, target_r=8, lora_alpha=12, orth_reg_weight=0.1, **schedule)
    return _peft("PEFT AdaLoRA r=12", problem, config)


def peft_vera(problem: Problem) -> Case:
    return _peft("PEFT VeRA r=1024", problem, peft.VeraConfig(r=1024))


def every_case(problem: Problem) -> list[Callable[[], Case]]:
    """Builders in the order of the table; a builder is called when there is room for its tensors."""
    return [
        lambda: floor(problem),
        lambda: ours("LoRA r=8", LORA, problem),
        lambda: peft_lora(problem),
        lambda: ours("LoRA r=8, dropout 0.05", LORA_DROPOUT, problem),
        lambda: peft_lora(problem, dropout=0.05),
        lambda: ours("AdaLoRA r=12", ADALORA, problem),
        lambda: peft_adalora(problem),
        lambda: ours("AFLoRA r=4", AFLORA, problem),
        lambda: ours("AFLoRA r=4, all frozen", AFLORA_FROZEN, problem),
        lambda: ours("VeRA r=1024", rw.VeRA(rank=1024, also_train=()), problem),
        lambda: peft_vera(problem),
        lambda: full(problem),
    ]
