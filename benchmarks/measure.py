"""Times steps side by side: all cases in one process, in turn, round after round; medians, and ratios of neighbours.

With one thread on a CPU, time is what the process was given of it, so that other work on the machine disturbs a ratio
little; with several, where waiting threads spin, it is the clock's.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from cases import Case

Row = dict[str, Any]


def seconds(step: Callable[[], Any], cuda: bool) -> float:
    """Of one step, by CUDA events on a GPU."""
    if not cuda:
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        began = clock()
        step()
        return clock() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


def interleaved(cases: Sequence[Case], rounds: int, warmups: int, cuda: bool) -> list[Row]:
    """Median seconds of each case and the median of its ratio to the first case, which runs before and after each of
    the others: the mean of its neighbours, so that a machine which becomes slower does not count.
    """
    for case in cases:
        for _ in range(warmups):
            case.step()
    first, *others = cases
    own: list[list[float]] = [[] for _ in cases]
    ratios: list[list[float]] = [[1.0], *([] for _ in others)]
    for _ in range(rounds):
        before = seconds(first.step, cuda)
        own[0].append(before)
        for i, case in enumerate(others, start=1):
            taken, after = seconds(case.step, cuda), seconds(first.step, cuda)
            own[i].append(taken)
            own[0].append(after)
            ratios[i].append(2 * taken / (before + after))
            before = after
    return [_row(case, own[i], ratios[i]) for i, case in enumerate(cases)]


def _row(case: Case, own: list[float], ratios: list[float]) -> Row:
    spread = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "case": case.name,
        "ms": round(1000 * statistics.median(own), 3),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(spread[0], 4), round(spread[2], 4)],
        "trainable": case.trainable,
    }


def cuda_peak(build: Callable[[], Case], warmups: int) -> tuple[str, int, int]:
    """(name, peak bytes above what a resident model takes, bytes that stay) of one case alone."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    case = build()
    for _ in range(warmups):
        case.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    case.step()
    torch.cuda.synchronize()
    peak, stays = torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    case.close()
    return case.name, peak, stays


@dataclass(frozen=True)
class Goal:
    """A figure beside what it should be."""

    what: str
    figure: float
    limit: float
    at_least: bool = False  # the figure should be the limit or more; else the limit or less
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "holds" if self.holds else "missed"
        return f"| {self.what} | {self.figure:.4g}{self.unit} | {sign} {self.limit:g}{self.unit} | {verdict} |"


def goal_table(goals: Sequence[Goal]) -> str:
    """The goals as Markdown."""
    return "\n".join(["| figure | measured | goal | |", "|---|---|---|---|", *map(str, goals), ""])


def machine() -> Row:
    """Where and with what the numbers were taken."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{processor()}, {torch.get_num_threads()} thread(s)",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def processor() -> str:
    """Its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = [n for n in info.read_text().splitlines() if n.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.machine()


def table(rows: Sequence[Row], title: str) -> str:
    """The rows as Markdown."""
    memory = any("peak_mib" in row for row in rows)
    head = "| case | ms / step | ÷ floor | quartiles | trainable |" + (" peak MiB |" if memory else "")
    lines = [f"### {title}", "", head, "|" + "---|" * (head.count("|") - 1)]
    for row in rows:
        low, high = row["ratio_quartiles"]
        cells = [
            row["case"],
            f"{row['ms']:.1f}",
            f"{row['ratio']:.3f}",
            f"{low:.3f}-{high:.3f}",
            f"{row['trainable']:,}",
        ]
        cells += [f"{row['peak_mib']:,}"] if memory and "peak_mib" in row else ([""] if memory else [])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def keep(folder: Path, name: str, tables: Sequence[str], data: Row) -> None:
    """Write the Markdown table and the numbers behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    where = ", ".join(f"{k} {v}" for k, v in machine().items())
    (folder / f"{name}.md").write_text("\n".join([f"# {name}", "", where, "", *tables]), encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine(), **data}, indent=1) + "\n", encoding="utf-8")
