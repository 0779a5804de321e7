"""What decisions to come will leave training, as far as shapes and the schedule tell.

n of M units (triplets, projections) of sizes c_1 ... c_M stop. Which ones, the gradients will choose; so the parameters
that stop are, if every choice is as likely, n · mean c, and in any case between the n smallest and the n largest sizes.
"""

from collections.abc import Iterable
from itertools import accumulate
from math import ceil, floor
from typing import NamedTuple


class Forecast(NamedTuple):
    """How many of the parameters that train at first will have stopped, once `step` has been acted on."""

    step: int
    least: int
    expected: float
    most: int


class Units:
    """What a controller chooses from, by size in parameters."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self._sums = list(accumulate(sorted(sizes), initial=0))  # of the n smallest

    def __len__(self) -> int:
        return len(self._sums) - 1

    @property
    def total(self) -> int:
        return self._sums[-1]

    def stopped(self, step: int, count: float) -> Forecast:
        """`count` of the units have stopped after `step`; of a fraction, some unit has or has not."""
        least = self._sums[floor(count)]
        most = self.total - self._sums[len(self) - ceil(count)]
        return Forecast(step, least, count * self.total / len(self), most)


def together(one: Forecast, other: Forecast, total: int) -> Forecast:
    """What at least one of two choices has stopped of `total` parameters, if neither looks at what the other chose."""
    both = one.expected * other.expected / total
    return Forecast(
        step=max(one.step, other.step),
        least=max(one.least, other.least),
        expected=one.expected + other.expected - both,
        most=min(one.most + other.most, total),
    )
