"""Every error that rankwise raises on purpose.

    RankwiseError
    ├── ConfigError        a setting cannot be, or settings contradict each other
    │   └── ScheduleError  the schedule leaves no room in the run it was given
    ├── TargetError        the targets do not fit the model
    ├── StateError         the call is right, the moment is wrong (adapted twice, optimizer not attached, ...)
    ├── NonFiniteError     gradients stay NaN or infinite, step after step
    ├── DataError          a data file or its columns, labels or rows cannot be used
    └── FolderError        an adapter or run folder is missing, broken, or made for another model

Each message says what came, what was possible, and what to do next. Whoever gets one finds the model and the disk as
they were before the call.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class RankwiseError(Exception):
    """Base of all errors raised on purpose; catch it to report a user's mistake without a traceback."""


class ConfigError(RankwiseError, ValueError):
    """A setting has a value that cannot work, or is unknown."""


class ScheduleError(ConfigError):
    """Warmup, cooldown and total steps leave no step in which the method could decide anything."""


class TargetError(RankwiseError, ValueError):
    """`targets` or `exclude` match nothing, or match something that cannot be adapted."""


class StateError(RankwiseError, RuntimeError):
    """The call came at a moment when it cannot be carried out."""


class NonFiniteError(RankwiseError, ArithmeticError):
    """Gradients were NaN or infinite in too many steps in a row."""


class DataError(RankwiseError, ValueError):
    """A data file cannot be read, or does not hold what the task needs."""


class FolderError(RankwiseError, OSError):
    """An adapter or run folder cannot be read or written, or does not fit the model."""


def not_installed(what: str, package: str, extra: str) -> str:
    """The message for a package of an extra that is missing."""
    return (
        f"{what} needs the package {package}, which is not installed. "
        f"`pip install 'rankwise[{extra}]'`, or '.[{extra}]' in a checkout, installs it."
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the known word nearest to `word`, or the empty string."""
    matches = get_close_matches(word, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""
