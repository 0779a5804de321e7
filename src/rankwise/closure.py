"""Optimizers that are given a closure call it within the step, after the hooks that come before a step.

What those hooks have to see, the gradients, must be there before. So the closure is called first, and the optimizer is
given one that tells the loss once more.
"""

from collections.abc import Callable
from typing import Any

import torch

from rankwise.errors import StateError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # of a step, as hooks get them: the optimizer is the first


def with_closure_run(args: tuple[Any, ...], given: dict[str, Any]) -> Arguments | None:
    """The arguments with the closure that has run in place of the closure; None where there is no closure.

    What the new one raises when it is called twice is a StateError.
    """
    closure = given.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        return None
    with torch.enable_grad():
        told = _once(closure())
    return (args, {**given, "closure": told}) if "closure" in given else ((args[0], told, *args[2:]), given)


def _once(loss: Any) -> Callable[[], Any]:
    losses = [loss]

    def tell() -> Any:
        if not losses:
            raise StateError(
                "the optimizer called its closure twice in a step, and no decision can say which gradients are the "
                "step's. Take one that calls it once, such as AdamW."
            )
        return losses.pop()

    return tell
