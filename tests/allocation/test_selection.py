"""Who stays, against sorting by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.allocation.amount import parameters_of
from rankwise.allocation.selection import below_quantile, keep_above, keep_affordable, keep_top, lowest
from rankwise.errors import ConfigError
from reference.adalora import AdaLoRATwin
from reference.pruned_lora import greedy

few_values = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 1e-30]), min_size=1, max_size=30)  # ties abound
any_values = st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=30)
scores = few_values | any_values


@given(scores, st.data())
def test_keep_top_is_sorting(values: list[float], data: st.DataObject):
    budget = data.draw(st.integers(0, len(values)))
    mask = keep_top(torch.tensor(values), budget)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert mask.nonzero().flatten().tolist() == sorted(order[:budget])
    assert int(mask.sum()) == budget


@given(scores, st.data())
def test_keep_above_drops_every_tie_at_the_threshold(values: list[float], data: st.DataObject):
    budget = data.draw(st.integers(0, len(values)))
    mask = keep_above(torch.tensor(values), budget).tolist()
    assert mask == AdaLoRATwin.top_b([torch.tensor(values)], budget, "drop")[0].tolist()
    if budget < len(values):
        threshold = sorted(values)[len(values) - budget - 1]
        assert mask == [v > threshold for v in values]


@given(scores, st.data())
def test_both_rules_agree_where_nothing_ties(values: list[float], data: st.DataObject):
    distinct = torch.tensor(sorted({float(torch.tensor(v)) for v in values}))
    distinct = distinct[torch.randperm(len(distinct))]
    budget = data.draw(st.integers(0, len(distinct)))
    assert torch.equal(keep_top(distinct, budget), keep_above(distinct, budget))


def test_equal_scores():
    equal = torch.ones(6)
    assert keep_top(equal, 4).tolist() == [True] * 4 + [False] * 2
    assert keep_above(equal, 4).tolist() == [False] * 6
    assert keep_above(equal, 6).tolist() == [True] * 6


@given(scores, st.data())
def test_lowest_is_sorting(values: list[float], data: st.DataObject):
    count = data.draw(st.integers(0, len(values)))
    assert lowest(torch.tensor(values), count) == sorted(range(len(values)), key=lambda i: (values[i], i))[:count]


def test_a_negative_count_chooses_nothing():
    """When the elementwise rule froze more than the share asks for, there is nothing to do."""
    assert lowest(torch.tensor([1.0, 2.0]), -1) == []


@given(st.lists(few_values, min_size=1, max_size=6), st.floats(0, 1))
def test_below_quantile_is_literal(matrices: list[list[float]], share: float):
    products = [torch.tensor(m) for m in matrices]
    pooled = sorted(e for m in products for e in m.tolist())
    rank = int(len(pooled) * share)
    means = [float(m.mean()) for m in products]
    expected = [i for i, mean in enumerate(means) if rank and mean < pooled[rank - 1]]
    assert below_quantile(products, share) == expected


@pytest.mark.parametrize("seed", range(20))
def test_affordable_is_greedy_by_score_per_cost(seed: int):
    generator = torch.Generator().manual_seed(seed)
    costs = [3, 5, 8, 3][: 1 + seed % 4]
    scores = [torch.randint(0, 6, (4,), generator=generator).float() for _ in costs]  # with ties
    each = torch.cat([torch.full((4,), c) for c in costs])
    for budget in range(int(each.sum()) + 2):
        kept = keep_affordable(torch.cat(scores), each, budget, prices=len(set(costs)))
        assert torch.equal(kept, torch.cat(greedy(scores, costs, budget))), budget
        assert (each * kept).sum() <= budget


@pytest.mark.parametrize(
    ("words", "parameters"),
    [("0.3M", 300_000), ("300k", 300_000), ("1.2MB", 300_000), (" 7 ", 7), ("1KiB", 256), ("2.5GiB", 671_088_640)],
)
def test_sizes(words: str, parameters: int):
    assert parameters_of(words) == parameters


@pytest.mark.parametrize("words", ["", "0", "0.1", "3B", "-3k", "1e3", "3 kk", "3Mi", "many", "9" * 99])
def test_sizes_that_are_none(words: str):
    with pytest.raises(ConfigError, match="Write a number of ranks"):
        parameters_of(words)
