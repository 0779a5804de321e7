"""Cases of which only some run every time; `make test-all` runs the others too."""

from collections.abc import Sequence
from typing import Any

import pytest


def some(cases: Sequence[Any], kept: Sequence[int] = (0,)) -> list[Any]:
    """Parameters of a test, slow but for those at the positions `kept`; a case of several arguments is a tuple."""
    return [
        case if i in kept else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for i, case in enumerate(cases)
    ]
