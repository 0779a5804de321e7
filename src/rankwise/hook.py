"""The only caller of a controller: hooks on the optimizer, so that no training loop can forget it.

Before a step: are the gradients finite, then `observe`. After it: `act`, then the moments of what froze are released.
A step that the loss scaler voids (fused optimizers are called for it all the same) is no step: nothing is observed,
acted or counted. While a model carries a controller, the first step of an optimizer that holds its parameters without
being attached raises.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from rankwise.adapter import Controller
from rankwise.allocation.history import Froze, History, SkippedNonFinite
from rankwise.errors import StateError


def unwrapped(optimizer: Any) -> Optimizer:
    """The optimizer whose step is the real one: accelerate's wrapper passes over accumulation and skipped steps."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise StateError(f"attached() needs a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    return optimizer


class Attachment:
    """One controller on one optimizer."""

    def __init__(
        self,
        optimizer: Optimizer,
        controller: Controller | None,
        history: History,
        settle: Callable[[], object] | None = None,  # called once, when the controller has settled
    ) -> None:
        self.optimizer, self.controller, self.history = optimizer, controller, history
        self._settle = None if controller is None or controller.settled else settle
        self.steps = 0  # real optimizer steps since it was attached
        self._void = False
        self._non_finite: Tensor | None = None  # () count on the device since the last flush

    def before_step(self, *_: Any) -> None:
        found_inf = vars(self.optimizer).get("found_inf")  # set by GradScaler for the length of a fused step
        self._void = found_inf is not None and bool(found_inf)
        if self._void or self.controller is None:
            return
        # a layer that lost every rank has gradients without elements
        gradients = [p.grad for p in self.controller.parameters() if p.grad is not None and p.grad.numel()]
        if not gradients:
            return
        finite = all_finite(gradients)
        skipped = (~finite).long()
        self._non_finite = skipped if self._non_finite is None else self._non_finite + skipped
        self.controller.observe(finite, vars(self.optimizer).get("grad_scale"))

    def after_step(self, *_: Any) -> None:
        if self._void:
            return
        self.steps += 1
        if self.controller is None:
            return
        events = self.controller.act()
        for event in events:
            self.history.add(event)
        if any(isinstance(event, Froze) for event in events):
            self._release_moments(self.controller.parameters())
        if self._settle is not None and self.controller.settled:
            self._settle()
            self._settle = None

    def _release_moments(self, parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            if not parameter.requires_grad:
                self.optimizer.state.pop(parameter, None)

    def flush(self) -> None:
        """Put what the device still holds into the history."""
        if self._non_finite is not None and self.controller is not None:
            self.history.add(SkippedNonFinite(self.controller.step - 1, self._non_finite))
            self._non_finite = None
        self.history.flush()


def all_finite(gradients: Sequence[Tensor]) -> Tensor:
    """() bool, on the device of the first gradient: the largest magnitude of each gradient is finite."""
    largest = torch._foreach_norm([g.detach() for g in gradients], ord=torch.inf)
    first = gradients[0].device
    return torch.isfinite(torch.stack([m.to(first, torch.float32) for m in largest])).all()


@contextmanager
def hooked(attachment: Attachment, guarded: Sequence[nn.Parameter]) -> Iterator[Attachment]:
    """Run the attachment from its optimizer's hooks within the block."""
    optimizer = attachment.optimizer
    guard(guarded)
    hooks = [
        optimizer.register_step_pre_hook(attachment.before_step),
        optimizer.register_step_post_hook(attachment.after_step),
    ]
    _ATTACHED.append(optimizer)
    try:
        yield attachment
    finally:
        for hook in hooks:
            hook.remove()
        _ATTACHED[:] = [o for o in _ATTACHED if o is not optimizer]
        attachment.flush()


# Parameters whose training a controller has to see, held weakly: they leave with their model.
_GUARDED = WeakTensorKeyDictionary()
_ATTACHED: list[Optimizer] = []


def guard(parameters: Sequence[nn.Parameter]) -> None:
    """From now on, an optimizer that steps one of these without being attached raises at its first step."""
    if not _GUARDED and parameters:
        _refuse_unattached.handle = register_optimizer_step_pre_hook(_refuse_unattached)  # type: ignore[attr-defined]
    for parameter in parameters:
        _GUARDED[parameter] = True


def _refuse_unattached(optimizer: Optimizer, *_: Any) -> None:
    if any(optimizer is attached for attached in _ATTACHED):
        return
    if any(p in _GUARDED for group in optimizer.param_groups for p in group["params"]):
        raise StateError(
            f"{type(optimizer).__name__} is about to step an adapted model whose method decides while it trains, "
            "but nothing would decide: the optimizer is not attached. Train inside "
            "`with adaptation.attached(optimizer, total_steps=...):`, or pass the Trainer "
            "callbacks=[rankwise.AdaptationCallback(adaptation)]."
        )
