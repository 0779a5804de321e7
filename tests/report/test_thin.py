"""Thinning keeps ends and peaks."""

from hypothesis import given
from hypothesis import strategies as st

from rankwise.report.thin import spread, thinned

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400)


@given(values, st.integers(4, 60))
def test_thinned_keeps_ends_peaks_and_order(heights: list[float], most: int):
    points = [(float(i), y) for i, y in enumerate(heights)]
    kept = thinned(points, most)
    assert len(kept) <= max(most, 1)
    assert kept == sorted(kept, key=lambda p: p[0]) and set(kept) <= set(points)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert max(y for _, y in kept) == max(heights) and min(y for _, y in kept) == min(heights)


@given(st.lists(st.integers(), max_size=300, unique=True), st.integers(2, 50))
def test_spread_keeps_both_ends_and_the_order(items: list[int], most: int):
    kept = spread(items, most)
    assert len(kept) == len(set(kept)) == min(len(items), most)
    assert kept == [i for i in items if i in set(kept)]
    assert not items or (kept[0] == items[0] and kept[-1] == items[-1])
