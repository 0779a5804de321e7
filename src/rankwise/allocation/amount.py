"""A budget as settings state it: a number of ranks, or a size in parameters or bytes."""

import re

from rankwise.errors import ConfigError

BYTES_OF_A_PARAMETER = 4  # adapter parameters are float32, in memory and in the file
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_FORMS = 'Write a number of ranks (576), parameters ("300k", "0.3M") or bytes ("1.2MB", "400KiB").'


def parameters_of(budget: str) -> int:
    """How many parameters fit into "0.3M" (parameters) or "1.2MB" (bytes); raises ConfigError for other words."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*(|[kMG]|[KMG]i)(B?)\s*", budget)
    if found is None or (found[2].endswith("i") and not found[3]):
        raise ConfigError(f"budget={budget!r} is no size. {_FORMS}")
    whole, _, decimals = found[1].partition(".")
    divisor = int("1" + "0" * len(decimals))  # in whole numbers, for no float is 0.3
    count = int(whole + decimals) * _FACTORS[found[2]] // divisor
    count = count // BYTES_OF_A_PARAMETER if found[3] else count
    if count < 1:
        raise ConfigError(f"budget={budget!r} has no room for a single parameter. {_FORMS}")
    return count


def check_budget(budget: int | str) -> None:
    """Raise ConfigError for what is neither a number of ranks nor a size."""
    if isinstance(budget, str):
        parameters_of(budget)
    elif type(budget) is not int or budget < 1:
        raise ConfigError(f"budget={budget!r} must be at least 1. {_FORMS}")
