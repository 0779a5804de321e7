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

RUN = 10_000  # steps that schedules are told of; the benchmark runs in their first, deciding phase
DECIDING = {"warmup": 0, "cooldown": RUN // 2}


@dataclass
class Case:
    """A named step. `close` lets go of hooks."""

    name: str
    step: Callable[[], Tensor]
    trainable: int
    close: Callable[[], None]


def loss_of(model: nn.Module, batch: dict[str, Tensor], autocast: torch.dtype | None) -> Tensor:
    device = next(iter(batch.values())).device.type
    context: AbstractContextManager[Any] = nullcontext() if autocast is None else torch.autocast(device, autocast)
    with context:
        loss: Tensor = model(**batch).loss
    return loss


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-4, fused=parameters[0].is_cuda)


def _case(
    name: str, model: nn.Module, batch: dict[str, Tensor], autocast: torch.dtype | None, after: Callable[[int], None]
) -> Case:
    """Forward, backward, optimizer; `after` is what a method asks its user to call behind the optimizer's step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _adamw(parameters)
    steps = 0

    def step() -> Tensor:
        nonlocal steps
        loss = loss_of(model, batch, autocast)
        loss.backward()
        optimizer.step()
        after(steps)
        optimizer.zero_grad()
        steps += 1
        return loss.detach()

    return Case(name, step, sum(p.numel() for p in parameters), lambda: None)


def floor(model: nn.Module, batch: dict[str, Tensor], autocast: torch.dtype | None) -> Case:
    model = copy.deepcopy(model).requires_grad_(False)
    # as with adapters in the first layer, every layer has to hand a gradient on
    model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, out: out.requires_grad_())

    def step() -> Tensor:
        loss = loss_of(model, batch, autocast)
        loss.backward()
        return loss.detach()

    return Case("floor", step, 0, lambda: None)


def full(model: nn.Module, batch: dict[str, Tensor], autocast: torch.dtype | None) -> Case:
    return _case("full fine-tuning", copy.deepcopy(model), batch, autocast, lambda _: None)


def ours(
    name: str,
    method: rw.LoRA | rw.AdaLoRA | rw.AFLoRA,
    model: nn.Module,
    batch: dict[str, Tensor],
    autocast: torch.dtype | None,
    compiled: bool = False,
) -> Case:
    model = copy.deepcopy(model)
    adaptation = rw.adapt(model, method)
    optimizer = _adamw(adaptation.parameters())
    attached = ExitStack()
    attached.enter_context(adaptation.attached(optimizer, RUN))
    call = torch.compile(model) if compiled else model

    def step() -> Tensor:
        loss = loss_of(call, batch, autocast)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Case(name, step, adaptation.count(), attached.close)


def aflora_frozen(model: nn.Module, batch: dict[str, Tensor], autocast: torch.dtype | None) -> Case:
    """AFLoRA after all projections froze: only the vectors train."""
    return ours("ours AFLoRA r=4, all frozen", rw.AFLoRA(rank=4, scope="none"), model, batch, autocast)


def peft_lora(model: nn.Module, batch: dict[str, Tensor], autocast: torch.dtype | None, dropout: float = 0.0) -> Case:
    config = peft.LoraConfig(
        r=8, lora_alpha=8, target_modules="all-linear", lora_dropout=dropout, task_type="CAUSAL_LM"
    )
    return _case("PEFT LoRA r=8", peft.get_peft_model(copy.deepcopy(model), config), batch, autocast, lambda _: None)


def peft_adalora(model: nn.Module, batch: dict[str, Tensor], autocast: torch.dtype | None) -> Case:
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.AdaLoraConfig(
        init_r=12,
        target_r=8,
        lora_alpha=12,
        tinit=0,
        tfinal=RUN // 2,
        deltaT=50,
        total_step=RUN,
        orth_reg_weight=0.1,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    return _case("PEFT AdaLoRA r=12", adapted, batch, autocast, adapted.base_model.update_and_allocate)


def peft_vera(model: nn.Module, batch: dict[str, Tensor], autocast: torch.dtype | None) -> Case:
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.VeraConfig(r=1024, target_modules=names, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    return _case("PEFT VeRA r=1024", adapted, batch, autocast, lambda _: None)


def every_case(model: nn.Module, batch: dict[str, Tensor], autocast: torch.dtype | None) -> list[Callable[[], Case]]:
    """Builders in the order of the table; a builder is called when there is room for its copy of the model."""
    given = (model, batch, autocast)
    adalora = rw.AdaLoRA(rank=12, target_rank=8, every=50, **DECIDING)
    return [
        lambda: floor(*given),
        lambda: ours("ours LoRA r=8", rw.LoRA(rank=8), *given),
        lambda: peft_lora(*given),
        lambda: ours("ours LoRA r=8, dropout 0.05", rw.LoRA(rank=8, dropout=0.05), *given),
        lambda: ours("ours AdaLoRA r=12", adalora, *given),
        lambda: peft_adalora(*given),
        lambda: ours("ours AFLoRA r=4", rw.AFLoRA(rank=4, warmup=RUN // 2, cooldown=0), *given),
        lambda: aflora_frozen(*given),
        lambda: peft_vera(*given),
        lambda: full(*given),
    ]
