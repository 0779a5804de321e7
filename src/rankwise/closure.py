"""Optimizers that are given a closure call it within the step, after the hooks that come before a step.

What those hooks have to see, the gradients, is there when the closure has run: it takes them along.
"""

from collections.abc import Callable
from typing import Any

from rankwise.errors import StateError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # of a step, as hooks get them: the optimizer is the first


class Followed:
    """A closure that sees to something when it has run, once in a step."""

    def __init__(self, closure: Callable[[], Any], then: Callable[[], object]) -> None:
        self.closure, self.then = closure, then
        self.ran = False

    def __call__(self) -> Any:
        """Raises StateError when it is called again."""
        if self.ran:
            raise StateError(
                "the optimizer called its closure twice in a step, and no decision can say which gradients are the "
                "step's. Take one that calls it once, such as AdamW."
            )
        loss = self.closure()
        self.ran = True
        self.then()
        return loss


def followed(
    args: tuple[Any, ...], given: dict[str, Any], then: Callable[[], object]
) -> tuple[Followed, Arguments] | tuple[None, None]:
    """The closure among the arguments of a step, with what it has to see to, and the arguments with it in its place."""
    closure = given.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        return None, None
    made = Followed(closure, then)
    return made, (args, {**given, "closure": made}) if "closure" in given else ((args[0], made, *args[2:]), given)
