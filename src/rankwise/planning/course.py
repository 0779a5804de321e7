"""The number of parameters that train, over the steps of a run."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.allocation.forecast import Forecast

BARS = " ▁▂▃▄▅▆▇█"
WIDTH, HEIGHT = 60, 6


@dataclass(frozen=True)
class Course:
    """What trains during each step: what trained at the start, less what decisions of earlier steps have stopped."""

    start: int
    total_steps: int | None
    decisions: Sequence[Forecast] | None  # None: they are not known in advance

    @property
    def changes(self) -> bool:
        return self.decisions is None or bool(self.decisions)

    def during(self, step: int) -> Forecast:
        """Least, expected and most parameters that train during `step`."""
        assert self.decisions is not None
        past = bisect_left(self.decisions, step, key=lambda decision: decision.step)
        stopped = self.decisions[past - 1] if past else Forecast(0, 0, 0, 0)
        return Forecast(step, self.start - stopped.most, self.start - stopped.expected, self.start - stopped.least)

    @property
    def end(self) -> Forecast | None:
        """As `during`, after the last step; None where it is not known."""
        if not self.changes:
            return self.during(0)
        return None if self.decisions is None or self.total_steps is None else self.during(self.total_steps)

    @property
    def average(self) -> float | None:
        """The expected number, averaged over the steps; None where it is not known."""
        if not self.changes:
            return float(self.start)
        if self.decisions is None or self.total_steps is None:
            return None
        stopped = 0.0
        for decision, later in zip(self.decisions, [*(d.step for d in self.decisions[1:]), None], strict=True):
            until = self.total_steps if later is None else later + 1
            stopped += decision.expected * (until - decision.step - 1)
        return self.start - stopped / self.total_steps


def chart(course: Course) -> str:
    """Trainable parameters over the steps of the run: a column shows the beginning of a stretch of steps."""
    assert course.total_steps is not None
    width = min(WIDTH, course.total_steps)
    values = [course.during(column * course.total_steps // width).expected for column in range(width)]
    heights = [value / course.start * HEIGHT for value in values]
    lines = []
    for row in reversed(range(HEIGHT)):
        label = f"{course.start:,}" if row == HEIGHT - 1 else "0" if row == 0 else ""
        bars = "".join(BARS[round(8 * min(1.0, max(0.0, height - row)))] for height in heights)
        lines.append(f"{label:>14} │{bars}")
    foot = f"step 0{course.total_steps:>{width - 6},}" if width > 20 else "step 0 to the end"
    return "\n".join(["", *lines, f"{'':>14} └{'─' * width}", f"{'':>16}{foot}", ""])
