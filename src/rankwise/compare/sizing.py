"""Equal budgets: the size at which a method comes nearest to a number of trainable parameters.

Nothing is guessed: for each size that is tried, the method is put into the model, without weights, and counted; what
the schedule will freeze or drop is taken from the controller that will run the training.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from torch import nn

from rankwise.adapter import Method
from rankwise.allocation.amount import parameters_of
from rankwise.compare.spec import Counted, Size, label_of
from rankwise.errors import ConfigError, TargetError
from rankwise.planning.planner import course_of

LARGEST = 2**20  # size that is tried; ranks and widths end long before
FARTHEST = 0.25  # from the budget; a method that stays farther away is run at its own size


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A method at the size that it is compared at."""

    method: Method
    budget: str | None
    """None: it has its own size, beside all budgets."""
    setting: str
    """Such as "rank=7"; empty for a method of one size."""
    parameters: int
    """That the budget is compared with; heads are not counted."""
    deviation: float | None
    """(parameters − budget) / budget."""
    note: str = ""
    """What is to be said about it."""


@dataclass(frozen=True, kw_only=True)
class Sizer:
    """Counts methods in one model, for one length of run."""

    bare: nn.Module
    """Without weights."""
    total_steps: int
    steps_per_epoch: int
    counted: Counted

    def own(self, method: Method, note: str = "") -> Sized:
        """At the size of its settings."""
        parameters, unknown = self.count(method)
        told = "; ".join(part for part in (note, unknown) if part)
        return Sized(
            method=method, budget=None, setting=_setting(method), parameters=parameters, deviation=None, note=told
        )

    def at(self, method: Method, budget: Size) -> Sized:
        """As near to the budget as it comes; at its own size where that is not near."""
        if isinstance(budget, dict):
            return self._at_rank(method, budget)
        goal = parameters_of(str(budget))
        if method.size_setting is None:
            return self.own(method, f"{method.name} comes in one size")
        size = nearest_size(goal, lambda size: self._count_at(method, size))
        if size is None:
            return self.own(method, f"no {method.size_setting} brings {method.name} to {budget}")
        chosen = method.resized(size)
        parameters, unknown = self.count(chosen)
        if self.counted == "end" and not unknown:
            chosen = chosen.filling(goal)
            parameters, _ = self.count(chosen)
        deviation = (parameters - goal) / goal
        if abs(deviation) > FARTHEST:
            reason = f"{method.size_setting}={size}, its nearest to {budget}, trains {parameters:,} ({deviation:+.0%})"
            return self.own(method, reason)
        label = label_of(budget)
        return Sized(
            method=chosen,
            budget=label,
            setting=_setting(chosen),
            parameters=parameters,
            deviation=deviation,
            note=unknown,
        )

    def _at_rank(self, method: Method, budget: dict[str, int]) -> Sized:
        if method.size_setting not in ("rank", "target_rank"):
            return self.own(method, f"{method.name} has no rank to be set")
        sized = self.own(method.resized(budget["rank"]))
        return replace(sized, budget=label_of(budget))

    def count(self, method: Method) -> tuple[int, str]:
        """(trainable parameters without heads, what cannot be known of them). Raises what does not fit the model."""
        course, heads = course_of(self.bare, method, total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch)
        if self.counted == "start":
            return course.start - heads, ""
        if course.end is None or course.average is None:
            return course.start - heads, "counted at its start: what is left at its end, the data will say"
        return round(course.end.expected if self.counted == "end" else course.average) - heads, ""

    def _count_at(self, method: Method, size: int) -> int | None:
        try:
            return self.count(method.resized(size))[0]
        except (ConfigError, TargetError):
            return None


def nearest_size(goal: int, count: Callable[[int], int | None]) -> int | None:
    """The whole size from 1 on whose `count`, which grows with it, is nearest to `goal`; None if none is possible.

    Sizes that are too small or too large for a method have the count None; of the possible ones, the largest is at
    least twice the smallest.
    """
    counts: dict[int, int] = {}

    def reaches(size: int) -> bool:
        found = count(size)
        if found is None:
            return any(possible < size for possible in counts)  # then it is too large, and not too small
        counts[size] = found
        return found >= goal

    low, high = 0, 1
    # each size adds a parameter at least, so that none above the goal is nearer than the first that is possible
    while not reaches(high) and (high <= goal or not counts) and high < LARGEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return min(counts, key=lambda size: (abs(counts[size] - goal), size), default=None)


def with_scale(method: Method, alpha_over_rank: float) -> Method:
    """With this alpha/rank, if the method has an alpha."""
    if "alpha" not in {f.name for f in fields(method)}:
        return method
    alpha = alpha_over_rank * vars(method)["rank"]
    return replace(method, alpha=alpha)  # type: ignore[call-arg]


def _setting(method: Method) -> str:
    named = [n for n in ("rank", method.size_setting, "budget") if n and vars(method).get(n) is not None]
    return ", ".join(f"{name}={vars(method)[name]}" for name in dict.fromkeys(named))
