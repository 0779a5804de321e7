"""Entries and records that nobody ran."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rankwise as rw
from rankwise.compare.grid import Entry, final, searches
from rankwise.compare.sizing import Sized
from rankwise.compare.spec import SearchConfig, Spec
from rankwise.train.config import RunConfig
from rankwise.train.data_config import DataConfig

DATA = DataConfig(train="rows.jsonl")


def spec(**changes: Any) -> Spec:
    given: dict[str, Any] = {
        "base": {"model": "m"},
        "tasks": {"sst2": {}, "rte": {}},
        "methods": {"lora": {}, "adalora": {}},
        "output": "out",
        "seeds": 3,
    }
    return Spec(**(given | changes))


def entry(task: str, method: str, budget: str | None, *rates: float, parameters: int = 1000, **changes: Any) -> Entry:
    sized = Sized(method=rw.LoRA(), budget=budget, setting="rank=8", parameters=parameters, deviation=0.01)
    given: dict[str, Any] = {
        "task": task,
        "method": method,
        "sized": sized,
        "config": RunConfig(model="m", method=rw.LoRA(), data=DATA, output=""),
        "rates": rates or (1e-3,),
        "search": SearchConfig(),
        "search_data": DATA,
        "metric": None,
        "higher_is_better": None,
    }
    return Entry(**(given | changes))


def finals(of: Entry, *scores: float | None, rate: float = 1e-3, **changes: Any) -> dict[str, Mapping[str, Any]]:
    """Records of the seeds 0, 1, ...; None where a run is missing."""
    cells = [final(of, seed, rate, Path("out")) for seed in range(len(scores))]
    return {
        cell.name: record(cell.identity, score, of, **changes)
        for cell, score in zip(cells, scores, strict=True)
        if score is not None
    }


def searched(of: Entry, *scores: float | None) -> dict[str, Mapping[str, Any]]:
    """Records of the search; None for a run that diverged."""
    cells = searches(of, Path("out"))
    return {cell.name: record(cell.identity, score, of) for cell, score in zip(cells, scores, strict=True)}


def record(identity: Mapping[str, Any], score: float | None, of: Entry, **changes: Any) -> dict[str, Any]:
    numbers = of.sized.parameters
    return {
        **identity,
        "metric": "accuracy",
        "higher_is_better": True,
        "score": score,
        "scores": {"accuracy": score},
        "trainable_start": numbers + 10,
        "trainable_end": numbers + 10,
        "trainable_average": numbers + 10.0,
        "head_parameters": 10,
        "seconds": 60.0,
        "peak_memory": 10**9,
        "steps": 100,
        "folder": "runs/x",
        "resumed": False,
    } | changes
