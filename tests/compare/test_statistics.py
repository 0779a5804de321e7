"""Against slow twins and the standard library."""

import statistics as library
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.compare.statistics import interval, mean, noise, paired_p, smallest_p, std

scores = st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=2, max_size=7)


def p_by_hand(differences: list[float]) -> float:
    """Of all 2ⁿ ways to choose signs, twice the share whose mean is at least as far out, on the nearer side."""
    observed = sum(differences)
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in product((1, -1), repeat=len(differences))
    ]
    above = sum(total >= observed - 1e-12 for total in sums) / len(sums)
    below = sum(total <= observed + 1e-12 for total in sums) / len(sums)
    return min(1.0, 2 * min(above, below))


@settings(max_examples=40)
@given(scores, st.data())
def test_p_is_that_of_every_choice_of_signs(ours: list[float], data: st.DataObject) -> None:
    theirs = data.draw(st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=len(ours), max_size=len(ours)))
    by_hand = p_by_hand([a - b for a, b in zip(ours, theirs, strict=True)])
    assert paired_p(ours, theirs) == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize("pairs", [1, 2, 3, 5, 14, 16])
def test_so_many_pairs_give_no_smaller_p(pairs: int) -> None:
    assert paired_p([0.9 + n / 100 for n in range(pairs)], [0.1] * pairs) == pytest.approx(smallest_p(pairs))


@given(scores)
def test_mean_and_spread(found: list[float]) -> None:
    assert mean(found) == pytest.approx(library.mean(found))
    assert std(found) == pytest.approx(library.stdev(found))


def test_a_single_score_has_no_spread() -> None:
    assert std([0.5]) is None and interval([0.5]) is None and noise([0.5], [0.4, 0.5]) is None
    assert paired_p([], []) is None


def test_the_interval_is_that_of_resampled_means() -> None:
    found = [0.81, 0.84, 0.86, 0.90, 0.79]
    drawn = np.random.default_rng(1).choice(found, (20000, 5)).mean(1)
    low, high = interval(found) or (0, 0)
    assert low == pytest.approx(np.percentile(drawn, 2.5), abs=0.004)
    assert high == pytest.approx(np.percentile(drawn, 97.5), abs=0.004)
    assert interval([0.5, 0.5, 0.5]) == [0.5, 0.5]


def test_noise_is_two_standard_errors_of_the_difference() -> None:
    assert noise([0.0, 1.0], [0.0, 2.0]) == pytest.approx(2 * (0.5 / 2 + 2.0 / 2) ** 0.5)
