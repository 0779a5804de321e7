"""Schedules as functions of the step, and the spans that settings state them in.

Steps are optimizer steps counted from 0. T: total steps, t_i: warmup, t_f: cooldown, ΔT: every.
"""

import re
from dataclasses import dataclass
from math import trunc

from rankwise.errors import ConfigError, ScheduleError


@dataclass(frozen=True)
class Epochs:
    """A span stated in epochs; it needs the number of steps per epoch when a run begins."""

    count: float

    def __str__(self) -> str:
        return f"{self.count:g} epoch" + ("" if self.count == 1 else "s")


def epochs(count: float) -> Epochs:
    """A span of `count` epochs, for `warmup`, `cooldown` and `every`."""
    return parse_span(Epochs(count), "epochs")  # type: ignore[return-value]


Span = int | float | str | Epochs  # steps, a fraction of the run below 1, "2 epochs", epochs(2)


def parse_span(span: Span, setting: str) -> int | float | Epochs:
    """The span as written in settings, checked; raises ConfigError naming the setting."""
    if isinstance(span, str):
        count = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+) epochs?\s*", span)
        if count is None:
            raise ConfigError(f"{setting}={span!r} is no span. {_SPANS}")
        span = Epochs(float(count[1]))
    if isinstance(span, bool) or not isinstance(span, int | float | Epochs):
        raise ConfigError(f"{setting}={span!r} is no span. {_SPANS}")
    if isinstance(span, float) and not 0 <= span < 1:
        raise ConfigError(f"{setting}={span} is a fraction of the run, so it must be in [0, 1). {_SPANS}")
    size = span.count if isinstance(span, Epochs) else span
    if size < 0 or (setting == "every" and size == 0):
        raise ConfigError(f"{setting}={span} is too short. {_SPANS}")
    return span


_SPANS = "Write steps (100), a fraction of the run (0.1), or epochs ('1 epoch' or rankwise.epochs(1))."


def steps_of(span: Span, setting: str, total_steps: int, steps_per_epoch: int | None) -> int:
    """How many optimizer steps a span is in a run of `total_steps`."""
    span = parse_span(span, setting)
    if isinstance(span, Epochs):
        if steps_per_epoch is None:
            raise ScheduleError(
                f"{setting} is {span}, and the number of steps per epoch is not known. "
                "Pass attached(..., steps_per_epoch=...), or write the span in steps or as a fraction."
            )
        return round(span.count * steps_per_epoch)
    return round(span * total_steps) if isinstance(span, float) else span


@dataclass(frozen=True)
class Phases:
    """The three phases of a run: before, while and after something is decided."""

    total: int
    warmup: int
    cooldown: int
    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ScheduleError(f"every={self.every}: decisions are at least one step apart; write 1 or more.")
        if self.total < 1:
            raise ScheduleError(f"total_steps={self.total} is no run; give its number of optimizer steps, 1 or more.")
        if self.warmup + max(1, self.cooldown) >= self.total:
            raise ScheduleError(
                f"warmup={self.warmup} + cooldown={self.cooldown} leave no step of total_steps={self.total} to decide "
                "anything in. Shorten them, so that together they are less than the run, or train longer."
            )

    @property
    def finish(self) -> int:
        """T − t_f: the first step of the final phase, which has at least one step, so that a run ends on its budget."""
        return self.total - max(1, self.cooldown)

    def remaining(self, step: int) -> float:
        """u = 1 − (t − t_i) / (T − t_i − t_f), the part of the deciding phase that is still to come, in [0, 1]."""
        if step <= self.warmup:
            return 1.0
        if step >= self.finish:
            return 0.0
        return 1.0 - (step - self.warmup) / (self.finish - self.warmup)


def cubic_budget(step: int, phases: Phases, start: int, end: int) -> int:
    """b(t) = trunc(b_T + (b_0 − b_T) u³): the number of triplets that may live (AdaLoRA eq. 12).

    The numerator of u is t − t_i as in the authors' code. The paper prints t − t_i − t_f, with which the budget would
    jump above b_0 when the warmup ends.
    """
    return trunc(end + (start - end) * phases.remaining(step) ** 3)


def staircase(step: int, total: int, stages: int, top: float) -> float:
    """0, ..., top in so many equal stages of the run; `top` throughout if there is one stage (SoRA's threshold)."""
    stage = min(step * stages // total, stages - 1)
    return top * stage / (stages - 1) if stages > 1 else top


def frozen_share(step: int, phases: Phases) -> float:
    """r(t) = 1 − u³: the share of the projections that is frozen after step t (AFLoRA §3)."""
    return 1.0 - phases.remaining(step) ** 3
