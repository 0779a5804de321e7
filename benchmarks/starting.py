"""Seconds to adapt SmolLM2-135M, to save, load and switch adapters, and to import the library.

python benchmarks/starting.py [--out benchmarks/results]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import rankwise as rw
from cases import LORA, Problem
from measure import Goal, goal_table, keep
from models import smollm2_problem

REPEATS = 7


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def import_seconds(statement: str, first: str = "pass") -> float:
    """Of a fresh process, after torch is there, and `first` has been done."""
    timed = f"began = time.perf_counter(); {statement}; print(time.perf_counter() - began)"
    code = f"import gc, torch, time; {first}; {timed}"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(REPEATS)
    ]
    return statistics.median(times)


def figures(problem: Problem, folder: Path) -> dict[str, float]:
    adaptation = rw.adapt(problem.alike(), LORA)
    bank = rw.Bank(problem.alike())
    for name in ("one", "other"):
        bank.add(name, adaptation)
    names = ["one", "other"] * REPEATS

    def switch(name: str) -> None:
        with bank.rows([name, name]):
            pass

    calls: dict[str, Callable[[], object]] = {
        "adapt": lambda: rw.adapt(problem.alike(), LORA),
        "save": lambda: adaptation.save(folder / "adapter"),
        "load": lambda: rw.load(problem.alike(), folder / "adapter"),
        "copy of the modules, in adapt and load": problem.alike,
    }
    medians = {n: statistics.median(seconds(call) for _ in range(REPEATS)) for n, call in calls.items()}
    return medians | {"switch": statistics.median(seconds(lambda n=n: switch(n)) for n in names)}  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        taken = figures(smollm2_problem(), Path(folder))
    copying = taken.pop("copy of the modules, in adapt and load")
    taken["adapt"] -= copying
    taken["load"] -= copying
    taken["import"] = import_seconds("import rankwise")
    taken["import with torch's objects collected before"] = import_seconds("import rankwise", "gc.collect()")
    taken["import of transformers alone"] = import_seconds("import transformers")
    limits = {"adapt": 0.3, "save": 0.3, "load": 0.5, "switch": 0.02, "import": 0.15}
    goals = [Goal(name, taken[name], limit, unit=" s") for name, limit in limits.items()]
    beside = [name for name in taken if name.startswith("import ")]
    tables = [goal_table(goals), *(f"{name}: {taken[name]:.3f} s\n" for name in beside)]
    print("\n".join(tables))
    keep(options.out, "starting", tables, taken | {"threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
