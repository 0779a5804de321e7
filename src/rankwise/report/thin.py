"""No more points than a screen shows, with every peak still there."""

from collections.abc import Sequence
from typing import TypeVar

MOST_POINTS = 800
MOST_FRAMES = 150

T = TypeVar("T")
Point = tuple[float, float]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """First and last, and the lowest and highest of each of most/2 equal stretches, in their order."""
    if len(points) <= most:
        return list(points)
    stretches, kept = most // 2 - 1, {0, len(points) - 1}
    for i in range(stretches):
        stretch = range(i * len(points) // stretches, (i + 1) * len(points) // stretches)
        kept |= {min(stretch, key=lambda at: points[at][1]), max(stretch, key=lambda at: points[at][1])}
    return [points[i] for i in sorted(kept)]


def spread(items: Sequence[T], most: int = MOST_FRAMES) -> list[T]:
    """At most so many of them, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
