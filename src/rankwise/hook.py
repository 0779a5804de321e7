"""The only caller of a controller: hooks on the optimizer, so that no training loop can forget it.

Before a step, or within it as soon as its closure has run: are the gradients finite, then `observe`. After it: `act`,
then the moments of what froze are released. A step that the loss scaler voids (fused optimizers are called for it all
the same) is no step: nothing is observed, acted or counted. While a model carries a controller, the first step of an
optimizer that holds its parameters without being attached raises.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from rankwise.adapter import LowRank
from rankwise.allocation.history import Froze, History, SkippedNonFinite
from rankwise.base_layers import is_from
from rankwise.closure import Arguments, Followed, followed
from rankwise.controller import Controller
from rankwise.distributed import everywhere, local
from rankwise.errors import NonFiniteError, StateError


def unwrapped(optimizer: Any) -> Optimizer:
    """The optimizer whose step is the real one: accelerate's wrapper passes over accumulation and skipped steps."""
    while is_from("accelerate", optimizer, "AcceleratedOptimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise StateError(f"attached() needs a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise StateError(
            "LBFGS computes several gradients within a step, of which no decision can say which is the step's. Take an "
            "optimizer that needs one, such as AdamW."
        )
    return optimizer


def check_holds(optimizer: Optimizer, trained: Sequence[nn.Parameter]) -> None:
    """Raise StateError unless the optimizer holds all of the adapters' parameters that train."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    absent = [p for p in trained if id(p) not in held]
    if absent:
        raise StateError(
            f"the optimizer holds {len(held)} parameters but not {len(absent)} of the adapters'. It was probably "
            "built before adapt(); build it afterwards, from adaptation.parameters()."
        )


def check_continues(run: Mapping[str, Any], total_steps: int | None, steps_per_epoch: int | None) -> None:
    """Raise StateError unless a run that has begun would go on to the same length, in epochs of the same length.

    `steps_per_epoch` may be unknown now, or have been before.
    """
    for name, was, now in (
        ("total_steps", run["total_steps"], total_steps),
        ("steps_per_epoch", run["steps_per_epoch"] or steps_per_epoch, steps_per_epoch or run["steps_per_epoch"]),
    ):
        if was != now:
            raise StateError(
                f"this adaptation has run {run['steps']} steps of a run with {name}={was}; it cannot continue with "
                f"{name}={now}. Pass the same number, or start anew with rankwise.load(..., resume=False)."
            )


class Settle(NamedTuple):
    """What is done once, when nothing will be decided any more."""

    act: Callable[[], object]
    check: Callable[[], None]  # raises StateError, after the first step, where `act` would


class Attachment:
    """One controller on one optimizer."""

    def __init__(
        self,
        optimizer: Optimizer,
        controller: Controller | None,
        history: History,
        layers: Iterable[LowRank],  # whose training the controller sees
        names: Callable[[], Mapping[nn.Parameter, str]],  # of the parameters, for people; compaction replaces some
        steps: int,  # real optimizer steps of the run so far
        total_steps: int | None = None,
        check: Callable[[], None] | None = None,  # called once, before the first step
        settle: Settle | None = None,  # when the controller has settled
    ) -> None:
        self.optimizer, self.controller, self.history = optimizer, controller, history
        self.layers = frozenset(layers)
        self.names, self.steps, self.total_steps = names, steps, total_steps
        self._settle = None if controller is None or controller.settled else settle
        self._check = check
        self._void = False
        self._bad_in_a_row = 0
        self._closure: Followed | None = None
        self._can_settle = None if self._settle is None else self._settle.check

    def before_step(self, _: Optimizer, args: tuple[Any, ...], given: dict[str, Any]) -> Arguments | None:
        """Returns new arguments for the step where it has a closure, which computes the gradients."""
        if self._check is not None:
            self._check()
            self._check = None
        self._closure, arguments = followed(args, given, self._see_gradients_of_closure)
        if self._closure is None:
            self._see_gradients()
        return arguments

    def _see_gradients_of_closure(self) -> None:
        _refuse_unattached(self.optimizer)  # now that it is known who has gradients
        self._see_gradients()

    def _see_gradients(self) -> None:
        for parameter in self._stopped():
            parameter.grad = None  # zeros, of DistributedDataParallel: they would decay the weight and revive moments
        found_inf = vars(self.optimizer).get("found_inf")  # set by GradScaler for the length of a fused step
        self._void = found_inf is not None and bool(found_inf)
        if self._void:
            return
        self._drop_non_finite()
        if self.controller is not None:
            self.controller.observe(vars(self.optimizer).get("grad_scale"))

    def after_step(self, *_: Any) -> None:
        if self._void:
            return
        if self._closure is not None and not self._closure.ran:
            raise StateError(
                f"{type(self.optimizer).__name__} took a step without calling the closure that it was given, so that "
                "nothing was decided. Leave the closure out."
            )
        self._closure = None
        self.steps += 1
        if self.steps - 1 == self.total_steps:
            warnings.warn(
                f"the run was laid out for total_steps={self.total_steps}, and goes on behind them: what is decided "
                "while it trains has been decided. Pass the number of steps that the loop takes.",
                stacklevel=2,
            )
        if self.controller is None:
            return
        if self._can_settle is not None and self.optimizer.state:  # now, and not when half the run is over
            self._can_settle()
            self._can_settle = None
        events = self.controller.act()
        for event in events:
            self.history.add(event)
        if any(isinstance(event, Froze) for event in events):
            self._release_moments()
        self._clear_moments()
        if self._settle is not None and self.controller.settled:
            self._settle.act()
            self._settle = None

    def _drop_non_finite(self) -> None:
        """If any gradient is NaN or infinite, take all of them away: the step then moves nothing and teaches nothing.

        This is the one place in a step that waits for the device: averaged into moments, one NaN would be the end of
        the run. Raises NonFiniteError after MOST_BAD_STEPS such steps in a row.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        if everywhere([all_finite(gradients)], parameters)[0]:
            self._bad_in_a_row = 0
            return
        finite = everywhere([all_finite([g]) for g in gradients], parameters)
        bad = [p for p, is_finite in zip(parameters, finite, strict=True) if not is_finite]
        known = self.names()
        names = tuple(known.get(p, "a parameter of the model") for p in bad)
        self.history.add(SkippedNonFinite(self.steps, names))
        for parameter in parameters:
            parameter.grad = None
        self._bad_in_a_row += 1
        if self._bad_in_a_row == MOST_BAD_STEPS:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise NonFiniteError(
                f"the gradients were NaN or infinite in {MOST_BAD_STEPS} steps in a row, now those of {shown}. "
                "The weights are as they were before. Lower the learning rate, look at the rows of these steps, "
                "or train in bf16 or fp32 instead of fp16."
            )

    def _stopped(self) -> list[nn.Parameter]:
        return [] if self.controller is None else self.controller.stopped()

    def _release_moments(self) -> None:
        for parameter in self._stopped():
            self.optimizer.state.pop(parameter, None)

    @torch.no_grad()
    def _clear_moments(self) -> None:
        """What was set to 0 starts anew: a momentum left over would move it off 0 again."""
        assert self.controller is not None
        for parameter, mask in self.controller.restarted():
            for name, value in self.optimizer.state.get(parameter, {}).items():
                if not isinstance(value, Tensor) or value.shape != parameter.shape:
                    continue
                if not value.is_floating_point():
                    raise StateError(
                        f"{type(self.optimizer).__name__} keeps {name} in {value.dtype}, which cannot be reset in "
                        "part. Take an optimizer with moments in floating point, or leave reset_moments_on_prune out."
                    )
                local(value).mul_(mask)


MOST_BAD_STEPS = 20


def all_finite(gradients: Sequence[Tensor]) -> bool:
    """Whether no element of any gradient is NaN or infinite.

    The norms tell, at a quarter of what the largest magnitudes cost on a CPU, unless one overflows where no element
    does.
    """
    held = [g.detach() for g in gradients if g.numel()]  # a layer compacted to rank 0 has empty ones
    if not held:
        return True
    return _all_finite(torch._foreach_norm(held)) or _all_finite(torch._foreach_norm(held, ord=torch.inf))


def _all_finite(norms: Sequence[Tensor]) -> bool:
    return bool(torch.stack([torch.isfinite(n).to(norms[0].device) for n in norms]).all())


@contextmanager
def hooked(attachment: Attachment) -> Iterator[Attachment]:
    """Run the attachment from its optimizer's hooks within the block."""
    optimizer = attachment.optimizer
    hooks = [
        optimizer.register_step_pre_hook(attachment.before_step),
        optimizer.register_step_post_hook(attachment.after_step),
    ]
    _ATTACHED.append(attachment)
    try:
        yield attachment
    finally:
        for hook in hooks:
            hook.remove()
        _ATTACHED.remove(attachment)
        attachment.history.flush()


# Layers whose training a controller has to see, held weakly: they leave with their model. Not their parameters, for
# compaction and FSDP2 replace those.
_GUARDED: WeakSet[LowRank] = WeakSet()
_ATTACHED: list[Attachment] = []
_HANDLES: list[RemovableHandle] = []  # of the one global hook, from the first guarded parameter on


def guard(layers: Iterable[LowRank]) -> None:
    """From now on, an optimizer that steps a parameter of these without being attached raises at its first step."""
    if not _HANDLES:
        _HANDLES.append(register_optimizer_step_pre_hook(_refuse_unattached))
    _GUARDED.update(layers)


def _refuse_unattached(optimizer: Optimizer, *_: Any) -> None:
    seen = {layer for attachment in _ATTACHED if attachment.optimizer is optimizer for layer in attachment.layers}
    unseen = [layer for layer in _GUARDED if layer not in seen]
    if not unseen:
        return
    # attached to one model, an optimizer may hold the parameters of another that rests, and has no gradients
    held = (p for group in optimizer.param_groups for p in group["params"])
    stepped = {id(p) for p in held if p.grad is not None or not seen}
    if any(id(p) in stepped for layer in unseen for p in layer.parameters(recurse=False)):
        raise StateError(
            f"{type(optimizer).__name__} is about to step an adapted model whose method decides while it trains, "
            "but nothing would decide: the optimizer is not attached. Train inside "
            "`with adaptation.attached(optimizer, total_steps=...):`, or pass the Trainer "
            "callbacks=[rankwise.AdaptationCallback(adaptation)]."
        )
