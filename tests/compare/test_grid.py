"""What is due, told from what has been run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from synthetic import entry, finals, record, searched

from rankwise.compare.grid import Entry, chosen_rate, due, final, searches, to_go

OUT = Path("out")


def names(entries: list[Entry], seeds: list[int], records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [cell.name for cell in due(entries, seeds, records, OUT)]


def test_every_method_is_seen_once_before_any_is_seen_twice() -> None:
    entries = [entry("sst2", "lora", "0.3M"), entry("sst2", "full", None), entry("rte", "lora", "0.3M")]
    assert names(entries, [0, 7], {}) == [
        "sst2/lora/0.3M/lr0.001/seed0",
        "sst2/full/lr0.001/seed0",
        "rte/lora/0.3M/lr0.001/seed0",
        "sst2/lora/0.3M/lr0.001/seed7",
        "sst2/full/lr0.001/seed7",
        "rte/lora/0.3M/lr0.001/seed7",
    ]


def test_a_search_comes_before_its_runs_and_other_methods_need_not_wait() -> None:
    one, other = entry("sst2", "lora", None, 1e-3, 1e-2), entry("sst2", "bitfit", None)
    assert names([one, other], [0], {}) == [
        "search/sst2/lora/lr0.001",
        "search/sst2/lora/lr0.01",
        "sst2/bitfit/lr0.001/seed0",
    ]
    half = dict(list(searched(one, 0.8, 0.9).items())[:1])
    assert names([one, other], [0], half)[0] == "search/sst2/lora/lr0.01"
    assert names([one, other], [0], searched(one, 0.8, 0.9))[0] == "sst2/lora/lr0.01/seed0"


def test_what_is_recorded_is_not_due_and_what_failed_is() -> None:
    one = entry("sst2", "lora", None)
    done = finals(one, 0.8, 0.9)
    assert names([one], [0, 1, 2], done) == ["sst2/lora/lr0.001/seed2"]
    failed = {name: {**found, "error": "no memory"} for name, found in done.items()}
    assert len(names([one], [0, 1, 2], failed)) == 3


@pytest.mark.parametrize(
    ("scores", "best"),
    [((0.8, 0.9, 0.7), 3e-3), ((0.9, 0.9, 0.7), 1e-3), ((None, 0.1, None), 3e-3), ((0.5, None, 0.6), 1e-2)],
)
def test_the_rate_that_scores_best_is_taken(scores: tuple[float | None, ...], best: float) -> None:
    """The lower one of equals; a run that diverged is the worst."""
    one = entry("sst2", "lora", None, 1e-3, 3e-3, 1e-2)
    assert chosen_rate(one, searched(one, *scores)) == best


def test_lower_may_be_better() -> None:
    one = entry("sst2", "lora", None, 1e-3, 1e-2)
    found = {
        cell.name: record(cell.identity, score, one, metric="perplexity", higher_is_better=False)
        for cell, score in zip(searches(one, OUT), (9.0, 7.5), strict=True)
    }
    assert chosen_rate(one, found) == 1e-2


def test_a_rate_is_not_chosen_while_a_run_of_the_search_failed() -> None:
    one = entry("sst2", "lora", None, 1e-3, 1e-2)
    found = dict(searched(one, 0.8, 0.9))
    last = searches(one, OUT)[1].name
    found[last] = {**found[last], "error": "no memory"}
    assert chosen_rate(one, found) is None


def test_a_cell_is_an_ordinary_run() -> None:
    cell = final(entry("sst2", "lora", "0.3M"), 5, 2e-3, OUT)
    assert cell.config.output == "out/runs/sst2/lora/0.3M/lr0.002/seed5"
    assert (cell.config.training.seed, cell.config.training.learning_rate) == (5, 2e-3)


def test_how_many_runs_are_to_go() -> None:
    one, other = entry("sst2", "lora", None, 1e-3, 1e-2), entry("sst2", "bitfit", None)
    assert to_go([one, other], [0, 1], {}) == 6
    found = searched(one, 0.8, 0.9)
    assert to_go([one, other], [0, 1], dict(list(found.items())[:1])) == 5
    assert to_go([one, other], [0, 1], found) == 4
    assert to_go([one, other], [0, 1], found | finals(other, 0.5)) == 3
    assert to_go([one], [0], found | {"sst2/lora/lr0.01/seed0": {"error": "no memory"}}) == 1
