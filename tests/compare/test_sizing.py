"""Equal budgets: the size that is chosen is the nearest there is, and a run of it trains what was counted."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

import rankwise as rw
from rankwise.adapter import Method
from rankwise.compare.sizing import FARTHEST, Sizer, nearest_size, with_scale
from rankwise.errors import ConfigError
from rankwise.methods import METHODS
from rankwise.planning.weightless import model_of

CONFIG = BertConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=50, num_labels=2
)
STEPS = 40
SETTINGS: dict[str, dict[str, Any]] = {"top-blocks": {"blocks": 1}, "adapter-drop": {"drop": 1}}


def sizer(counted: Any = "end") -> Sizer:
    bare, _ = model_of(CONFIG, "classification", None)
    return Sizer(bare=bare, total_steps=STEPS, steps_per_epoch=10, counted=counted)


def method_named(name: str) -> Method:
    return METHODS[name](**SETTINGS.get(name, {}))


each_method = pytest.mark.parametrize("name", METHODS)


@given(st.integers(1, 5000), st.integers(1, 60), st.integers(0, 50), st.integers(8, 90), st.integers(1, 4))
def test_the_nearest_size_is_the_nearest(goal: int, slope: int, start: int, largest: int, least: int) -> None:
    """Against trying every size; below `least` and above `largest` the method is impossible."""

    def count(size: int) -> int | None:
        return start + slope * size if least <= size <= largest else None

    every = {size: found for size in range(1, 6000) if (found := count(size)) is not None}
    found = nearest_size(goal, count)
    assert (found is None) == (not every)
    if found is not None:
        assert abs(every[found] - goal) == min(abs(other - goal) for other in every.values())


@each_method
@pytest.mark.parametrize("budget", ["4k", "20k"])
def test_what_is_chosen_is_near_or_its_own(name: str, budget: str) -> None:
    method, goal = method_named(name), {"4k": 4000, "20k": 20000}[budget]
    sized = sizer().at(method, budget)
    if sized.budget is None:
        assert sized.method == method and sized.note
        return
    assert sized.deviation is not None and abs(sized.deviation) <= FARTHEST
    assert sized.parameters == pytest.approx(goal * (1 + sized.deviation))


@each_method
def test_the_neighbours_are_farther_away(name: str) -> None:
    sized = sizer("start").at(method_named(name), "20k")
    setting = sized.method.size_setting
    if sized.budget is None or setting is None:
        return
    size = vars(sized.method)[setting]
    for neighbour in (size - 1, size + 1):
        try:
            other, _ = sizer("start").count(sized.method.resized(neighbour))
        except rw.RankwiseError:
            continue
        assert abs(other - 20000) >= abs(sized.parameters - 20000)


@pytest.mark.parametrize("name", ["lora", "svd-lora", "adalora", "pruned-lora", "houlsby", "pfeiffer", "prefix-layer"])
def test_a_run_trains_at_its_end_what_was_counted(name: str) -> None:
    """By the adaptation's own count, once the real controller has decided everything."""
    sized = sizer().at(method_named(name), "6k")
    assert sized.budget == "6k"
    model = BertForSequenceClassification(CONFIG)
    adaptation = rw.adapt(model, sized.method)
    heads = sum(p.numel() for n, p in adaptation.trained.items() if n not in adaptation.tuned)
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=1e-3)
    words = torch.arange(16).reshape(2, 8)
    with adaptation.attached(optimizer, total_steps=STEPS, steps_per_epoch=10):
        for _ in range(STEPS):
            model(input_ids=words, labels=words[:, 0] % 2).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    # a budget is never exceeded, and what is left of it is less than any triplet costs
    assert adaptation.count() - heads == pytest.approx(sized.parameters, abs=200 if "budget" in sized.setting else 0)
    assert adaptation.count() - heads <= max(6000, sized.parameters)


@each_method
def test_another_size_keeps_alpha_over_rank(name: str) -> None:
    for ratio in (1.0, 0.5, 2.0):
        method = with_scale(method_named(name), ratio)
        if "alpha" not in {f.name for f in fields(method)}:
            assert method == method_named(name)
            continue
        assert method.size_setting is not None
        for size in (2, 3, 7):
            other = method.resized(size)
            assert vars(other)["alpha"] / vars(other)["rank"] == pytest.approx(ratio)
            assert vars(other)[method.size_setting] == size


def test_adalora_starts_with_half_as_much_again() -> None:
    made = rw.AdaLoRA(rank=12, target_rank=8, budget=40).resized(5)
    assert (made.rank, made.target_rank, made.budget) == (8, 5, None)
    assert made.filling(1234).budget == "1234"


def test_a_rank_as_a_budget() -> None:
    assert sizer().at(rw.LoRA(rank=8, alpha=16), {"rank": 4}).method == rw.LoRA(rank=4, alpha=8)
    assert sizer().at(rw.AdaLoRA(), {"rank": 4}).method == rw.AdaLoRA(rank=6, target_rank=4)
    sized = sizer().at(rw.BitFit(), {"rank": 4})
    assert sized.budget is None and "no rank" in sized.note


def test_methods_of_one_size_say_so() -> None:
    for method in (rw.BitFit(), rw.FullFineTuning(), rw.VeRA(rank=16)):
        sized = sizer().at(method, "20k")
        assert sized.budget is None and "comes in one size" in sized.note and sized.parameters > 0
        with pytest.raises(ConfigError, match="comes in one size"):
            method.resized(3)


def test_aflora_meets_a_budget_by_what_it_starts_with_or_by_its_average() -> None:
    """At the end only its vectors train, however large its rank."""
    end, average, start = (sizer(counted).at(rw.AFLoRA(), "6k") for counted in ("end", "average", "start"))
    assert end.budget is None and "its nearest to 6k" in end.note
    assert average.budget == start.budget == "6k"
    assert vars(average.method)["rank"] > vars(start.method)["rank"]


def test_what_the_data_decide_is_counted_at_the_start() -> None:
    sized = sizer().at(rw.SoRA(), "6k")
    assert sized.budget == "6k" and "the data will say" in sized.note
