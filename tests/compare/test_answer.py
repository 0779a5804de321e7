"""Results and sentences, from runs whose scores are known."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from synthetic import entry, finals, searched, spec

from rankwise.compare.answer import answer
from rankwise.compare.results import results, rows_of
from rankwise.compare.spec import Published, Spec
from rankwise.compare.tables import markdown

LORA, SMALL = entry("sst2", "lora", "0.3M", parameters=300_000), entry("sst2", "lora", "0.08M", parameters=80_000)
ADA = entry("sst2", "adalora", "0.3M", parameters=300_000)
BITFIT = entry("sst2", "bitfit", None, parameters=90_000)
ALL = [LORA, ADA, SMALL, BITFIT]


def told(given: Spec, entries: list[Any], records: Mapping[str, Any]) -> dict[str, Any]:
    rows = rows_of(given, entries, records)
    found = results(given, rows, records, answer(given, rows))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert markdown(found).startswith("# Comparison")
    return found


def one_task(**changes: Any) -> Spec:
    return spec(tasks={"sst2": {}}, methods={"lora": {}, "adalora": {}, "bitfit": {}}, **changes)


def test_rows_bear_the_numbers_of_their_runs() -> None:
    records = {
        **finals(LORA, 0.80, 0.82, 0.81),
        **finals(ADA, 0.83, 0.85, 0.84, seconds=90.0, trainable_average=400_000.0),
        **finals(SMALL, 0.79, 0.81, None),
    }
    task = told(one_task(), ALL, records)["tasks"]["sst2"]
    lora, ada, small, bitfit = task["rows"]
    assert (task["metric"], task["higher_is_better"]) == ("accuracy", True)
    assert lora["mean"] == pytest.approx(0.81) and lora["std"] == pytest.approx(0.01)
    assert lora["difference"] is None and lora["p_value"] is None
    assert ada["difference"] == pytest.approx(0.03) and ada["p_value"] == 0.25
    assert (ada["seconds"], ada["trainable_average"], ada["learning_rate"]) == (90.0, 400_000.0, 1e-3)
    assert (small["seeds"], bitfit["seeds"], bitfit["mean"]) == (2, 0, None)


def test_seeds_are_paired() -> None:
    """Only those that both have: the mean of the others would be another's."""
    records = {**finals(LORA, 0.5, 0.9, 0.7), **finals(ADA, None, 0.8, 0.9)}
    ada = told(one_task(), ALL, records)["tasks"]["sst2"]["rows"][1]
    assert ada["difference"] == pytest.approx((0.8 + 0.9) / 2 - (0.9 + 0.7) / 2)


def test_a_method_of_its_own_size_is_compared_with_the_nearest_baseline() -> None:
    rows = told(one_task(), ALL, finals(BITFIT, 0.8))["tasks"]["sst2"]["rows"]
    assert [row["baseline"] for row in rows] == [None, "lora at 0.3M", None, "lora at 0.08M"]


def test_a_cheaper_method_within_the_noise_is_taken() -> None:
    records = {
        **finals(LORA, 0.80, 0.84, 0.82),
        **finals(ADA, 0.81, 0.85, 0.83),
        **finals(SMALL, 0.80, 0.82, 0.81),
        **finals(BITFIT, 0.60, 0.61, 0.62),
    }
    sentences = told(one_task(), ALL, records)["answer"]
    assert sentences[0].startswith("Take lora at 0.08M: within the noise of the best on 1 of 1 tasks, with 80,000")
    assert "adalora at 0.3M has the best accuracy, 0.8300 (3 seeds)" in sentences[1]
    assert "smallest within its noise is lora at 0.08M" in sentences[1]


def test_of_two_that_end_equally_small_the_one_that_trained_less_is_the_smaller() -> None:
    records = {
        **finals(LORA, 0.8, trainable_end=20_000.0, trainable_average=50_000.0),
        **finals(ADA, 0.8, trainable_end=20_000.0, trainable_average=30_000.0),
    }
    sentences = told(one_task(), ALL, records)["answer"]
    assert sentences[0].startswith("Take adalora at 0.3M")
    assert "the smallest within its noise is adalora at 0.3M" in sentences[1]


def test_a_clearly_better_method_is_taken_whatever_it_costs() -> None:
    records = {
        **finals(LORA, 0.70, 0.71, 0.72),
        **finals(ADA, 0.90, 0.91, 0.92),
        **finals(SMALL, 0.6, 0.6, 0.6),
        **finals(BITFIT, 0.60, 0.61, 0.62),
    }
    sentences = told(one_task(), ALL, records)["answer"]
    assert sentences[0].startswith("Take adalora at 0.3M")
    assert "and nothing smaller is within its noise" in sentences[1]


def test_where_the_baseline_is_not_beaten_is_said() -> None:
    rte = [entry("rte", "lora", "0.3M"), entry("rte", "adalora", "0.3M")]
    records = {
        **finals(LORA, 0.80, 0.81, 0.82),
        **finals(ADA, 0.79, 0.80, 0.81),
        **finals(rte[0], 0.5, 0.5, 0.5),
        **finals(rte[1], 0.6, 0.7, 0.8),
    }
    sentences = told(spec(), [LORA, ADA, *rte], records)["answer"]
    [about] = [s for s in sentences if s.startswith("adalora at 0.3M beats")]
    assert "beats lora at 0.3M on rte (+0.2000) and does not beat lora at 0.3M on sst2 (-0.0100)" in about
    assert "over 6 pairs of runs p = 0.25," in about and "not significant" in about


def test_who_could_not_be_recommended_is_told() -> None:
    rte = [entry("rte", "lora", "0.3M"), entry("rte", "adalora", "0.3M")]
    records = {**finals(LORA, 0.8), **finals(ADA, 0.9), **finals(rte[0], 0.5)}
    first = told(spec(), [LORA, ADA, *rte], records)["answer"][0]
    assert first.startswith("Take lora at 0.3M") and first.endswith("for want of a run on some task: adalora at 0.3M.")


def test_what_few_seeds_cannot_say() -> None:
    records = {**finals(LORA, 0.80, 0.81, 0.82), **finals(ADA, 0.9, 0.91, 0.92)}
    [about] = [s for s in told(one_task(), ALL, records)["answer"] if "cannot give less" in s]
    assert "With 3 seeds" in about and "p = 0.25" in about and "6 seeds could" in about
    [about] = [s for s in told(one_task(seeds=1), ALL, finals(LORA, 0.8))["answer"] if "one seed" in s]
    many = {**finals(LORA, *[0.8 + n / 100 for n in range(6)]), **finals(ADA, *[0.9 + n / 100 for n in range(6)])}
    assert not [s for s in told(one_task(seeds=6), ALL, many)["answer"] if "cannot" in s or "not significant" in s]


def test_a_lower_perplexity_is_better() -> None:
    changes: dict[str, Any] = {"metric": "perplexity", "higher_is_better": False}
    records = {**finals(LORA, 9.0, 9.1, 9.2, **changes), **finals(ADA, 7.0, 7.1, 7.2, **changes)}
    found = told(one_task(), [LORA, ADA], records)
    assert found["answer"][0].startswith("Take adalora at 0.3M")
    assert any("beats lora at 0.3M on sst2 (+2.0000)" in s for s in found["answer"])
    assert found["tasks"]["sst2"]["rows"][1]["difference"] == pytest.approx(-2.0)


def test_what_is_missing_and_what_failed_is_listed() -> None:
    records = dict(finals(LORA, 0.8, 0.8, None))
    first = "sst2/adalora/0.3M/lr0.001/seed0"
    records |= {name: {**r, "error": "no memory", "score": None} for name, r in finals(ADA, 0.1).items()}
    found = told(one_task(), [LORA, ADA], records)
    assert found["not_run"] == [
        "sst2/adalora/0.3M/seed0",
        "sst2/adalora/0.3M/seed1",
        "sst2/lora/0.3M/seed2",
        "sst2/adalora/0.3M/seed2",
    ]
    assert found["failed"] == {first: "no memory"}
    assert "| adalora | 0.3M | not run |" in markdown(found)


def test_nothing_has_been_run() -> None:
    assert told(one_task(), ALL, {})["answer"] == ["Nothing has been run yet."]


def test_an_edge_of_the_grid_is_told() -> None:
    wide = entry("sst2", "lora", "0.3M", 1e-3, 3e-3, 1e-2)
    records = {**searched(wide, 0.7, 0.8, 0.9), **finals(wide, 0.8, rate=1e-2)}
    assert any("edge of its grid for sst2/lora/0.3M (0.01)" in s for s in told(one_task(), [wide], records)["answer"])
    records = {**searched(wide, 0.7, 0.9, 0.8), **finals(wide, 0.8, rate=3e-3)}
    assert not any("edge" in s for s in told(one_task(), [wide], records)["answer"])


def test_a_run_that_fell_behind_its_search_is_told() -> None:
    wide = entry("sst2", "lora", "0.3M", 1e-3, 3e-3, 1e-2)
    records = {**searched(wide, 0.7, 0.8, 0.9), **finals(wide, 0.85, 0.1, rate=1e-2)}
    [about] = [s for s in told(one_task(), [wide], records)["answer"] if "behind" in s]
    assert "sst2/lora/0.3M, seed 1 (0.1000; 0.9000 in the search)." in about and "seed 0" not in about
    worse = {"metric": "perplexity", "higher_is_better": False}
    records = {name: {**r, **worse} for name, r in {**searched(wide, 9, 5, 7), **finals(wide, 6, 5, rate=3e-3)}.items()}
    [about] = [s for s in told(one_task(), [wide], records)["answer"] if "behind" in s]
    assert "seed 0 (6.0000; 5.0000 in the search)" in about and "seed 1" not in about
    undefined = {name: {**r, "score": None} for name, r in finals(wide, 0.5, rate=1e-2).items()}
    records = {**searched(wide, 0.7, 0.8, 0.9), **finals(wide, 0.1, 0.9, rate=1e-2), **undefined}
    assert any("seed 0 (no score; 0.9000" in s for s in told(one_task(), [wide], records)["answer"])


def test_a_collapsed_run_does_not_widen_the_noise() -> None:
    wide = entry("sst2", "bitfit", None, 1e-3, 3e-3, 1e-2, parameters=90_000)
    records = {**finals(LORA, 0.85, 0.84), **searched(wide, 0.7, 0.8, 0.75), **finals(wide, 0.0, 0.84, rate=3e-3)}
    sentences = told(one_task(), [LORA, wide], records)["answer"]
    assert sentences[0].startswith("Take lora at 0.3M") and "nothing smaller is within its noise" in sentences[1]


def test_published_numbers_stand_beside_ours() -> None:
    published = [
        Published(task="sst2", method="adalora", value=96.1, source="Zhang et al., table 1"),
        Published(task="sst2", method="lora", budget="0.08M", value=94.9, source="there"),
        Published(task="sst2", method="diff pruning", value=94.0, source="elsewhere"),
    ]
    found = told(one_task(published=published, notes=["MiniLM, not DeBERTa"]), ALL, finals(LORA, 0.8))
    rows = {(r["method"], r["budget"]): [p["value"] for p in r["published"]] for r in found["tasks"]["sst2"]["rows"]}
    assert rows[("adalora", "0.3M")] == [96.1] and rows[("lora", "0.08M")] == [94.9] and rows[("lora", "0.3M")] == []
    assert "diff pruning: 94 (elsewhere)" in markdown(found) and "- MiniLM, not DeBERTa" in markdown(found)
