"""Mean, spread and significance over a few seeds, by scipy.

The test is the exact permutation of signs: under the hypothesis that two methods do not differ, the sign of each paired
difference is a coin's, and p is the share of the 2ⁿ ways to throw them whose mean is as far from 0. It supposes nothing
about the distribution; n pairs can at best give p = 2^(1 − n). Of more than 16 pairs, so many ways are drawn by lot.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

from rankwise.errors import ConfigError, not_installed

CONFIDENCE, RESAMPLES = 0.95, 9999
SIGNS = 2**16  # ways to throw the signs that are tried at most: all those of 16 pairs


def mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def std(scores: Sequence[float]) -> float | None:
    """Of the sample (n − 1); None for a single score."""
    if len(scores) < 2:
        return None
    m = mean(scores)
    return sqrt(sum((score - m) ** 2 for score in scores) / (len(scores) - 1))


def interval(scores: Sequence[float]) -> list[float] | None:
    """Percentile bootstrap interval of the mean; None for a single score. Of 2 or 3 scores it spans little more than
    the scores themselves."""
    if len(scores) < 2:
        return None
    found = _scipy().bootstrap(
        (scores,), _mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile", rng=0
    )
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]


def paired_p(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Two-sided p of the paired differences; None without a pair."""
    if len(ours) < 2:
        return smallest_p(1) if ours else None

    def difference(x: Any, y: Any, axis: int) -> Any:
        return _mean(x - y, axis=axis)

    found = _scipy().permutation_test(
        (ours, theirs), difference, permutation_type="samples", vectorized=True, n_resamples=SIGNS, rng=0
    )
    return float(found.pvalue)


def smallest_p(pairs: int) -> float:
    """The least that so many pairs can give."""
    return float(2 ** (1 - pairs))


def noise(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Two standard errors of the difference of the two means: what is smaller is no difference. None without spread."""
    one, other = std(ours), std(theirs)
    if one is None or other is None:
        return None
    return 2 * sqrt(one**2 / len(ours) + other**2 / len(theirs))


def _mean(scores: Any, axis: int = -1) -> Any:
    return scores.mean(axis=axis)


def _scipy() -> Any:
    try:
        from scipy import stats  # a second to import, and only results need it
    except ImportError:
        raise ConfigError(not_installed("a comparison", "scipy", "compare")) from None
    return stats
