"""Ranks and alphas by layer: PEFT's rule, by which the first key that matches wins, and ours, the longest ending."""

import time
from collections.abc import Mapping
from typing import Generic, TypeVar

from rankwise.errors import ConfigError
from rankwise.io.untrusted import brief
from rankwise.methods.low_rank import endings

T = TypeVar("T", int, float)

SECONDS = 0.5
LONGEST = 500  # characters of a regular expression


class Clock:
    """The seconds left for running the regular expressions of one config: a file may hold one that never ends."""

    def __init__(self) -> None:
        self.left = SECONDS


class Pattern(Generic[T]):
    """{key: value}, where a key is a layer's name, its end, or a regular expression for one of these."""

    def __init__(self, pattern: Mapping[str, T], clock: Clock) -> None:
        self.values: list[T] = list(pattern.values())
        self.clock = clock
        self.places = {key: place for place, key in enumerate(pattern)}
        plain = {key for key in pattern if all(c.isalnum() or c in "_-." for c in key)}
        self.expressions = {key: place for key, place in self.places.items() if key not in plain}

    def __call__(self, name: str, default: T) -> T:
        """The value for the layer `name`: of the first key that matches, as in PEFT."""
        found = [self.places[e] for e in endings(name) if e in self.places]
        found += [place for key, place in self.expressions.items() if self._matches(key, name)]
        return self.values[min(found)] if found else default

    def _matches(self, key: str, name: str) -> bool:
        import regex  # takes a tenth of what importing rankwise takes, and few configs hold an expression

        if len(key) > LONGEST:
            raise ConfigError(f"{brief(key)} is longer than {LONGEST} characters: write layers by their names.")
        try:
            began = time.monotonic()
            matched = regex.match(rf"(.*\.)?({key})$", name, timeout=max(self.clock.left, 1e-3)) is not None
            self.clock.left -= time.monotonic() - began
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise ConfigError(f"{brief(key)} is no regular expression: {error}.") from error
        except TimeoutError as error:
            raise ConfigError(f"{brief(key)} takes too long to match: write layers by their names.") from error
        return matched


def as_pattern(values: Mapping[str, T], default: T) -> dict[str, T]:
    """The shortest of our patterns that gives each named layer its value."""
    pattern = {name: value for name, value in values.items() if value != default}
    inner = any(ending in pattern for name in values for ending in endings(name) if ending != name)
    return dict(values) if inner else pattern  # one layer's name ends in another's: then each is named
