"""Seconds of a training step, beside back-propagation through the frozen model (the floor) and beside PEFT.

python benchmarks/steps.py [--rounds 7] [--threads 1] [--without VeRA dropout] [--out benchmarks/results]
"""

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path

import torch

from cases import Problem, every_case
from measure import Goal, Row, goal_table, interleaved, keep, table
from models import has_bfloat16, minilm_problem, smollm2_problem


def goals(rows: Sequence[Row]) -> list[Goal]:
    """What the ratios should be, of the cases that were measured."""
    ratio = {row["case"]: row["ratio"] for row in rows}
    ms = {row["case"]: row["ms"] for row in rows}

    def overhead(ours: str) -> float:
        return float((ratio[ours] - 1) / (ratio[f"PEFT {ours}"] - 1))

    found = [
        Goal("LoRA r=8 ÷ floor", ratio["LoRA r=8"], 1.12),
        Goal("its overhead ÷ PEFT's", overhead("LoRA r=8"), 0.55),
        Goal("AdaLoRA r=12 ÷ floor", ratio["AdaLoRA r=12"], 1.16),
        Goal("its overhead ÷ PEFT's", overhead("AdaLoRA r=12"), 0.4),
        Goal("AFLoRA, all frozen ÷ floor", ratio["AFLoRA r=4, all frozen"], 1.08),
        Goal("full fine-tuning ÷ LoRA r=8", ms["full fine-tuning"] / ms["LoRA r=8"], 1.4, at_least=True),
    ]
    if "VeRA r=1024" in ms:
        faster = min(ms["VeRA r=1024"], ms["PEFT VeRA r=1024"])
        found.append(Goal("faster VeRA r=1024 ÷ AFLoRA r=4", faster / ms["AFLoRA r=4"], 2.2, at_least=True))
    return found


def measured(problem: Problem, rounds: int, without: Sequence[str]) -> list[Row]:
    cases = []
    for build in every_case(problem):
        case = build()
        if any(part in case.name for part in without):
            case.close()
        else:
            cases.append(case)
    rows = interleaved(cases, rounds, warmups=2, cuda=False)
    for case in cases:
        case.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without", choices=("VeRA", "dropout"), nargs="*", default=(), help="slow cases to leave out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    problems = {
        "MiniLM, 4 × 32 tokens, float32": minilm_problem,
        "SmolLM2-135M, 2 × 128 tokens, float32": smollm2_problem,
    }
    if has_bfloat16():
        title = "SmolLM2-135M, 2 × 128 tokens, bfloat16 autocast"
        problems[title] = lambda: smollm2_problem(autocast=torch.bfloat16)
    tables, data = [], {}
    for title, make in problems.items():
        rows = measured(make(), options.rounds, options.without)
        gc.collect()
        tables += [table(rows, title), goal_table(goals(rows))]
        data[title] = rows
        print("\n".join(tables[-2:]), flush=True)
    if not has_bfloat16():
        tables.append(
            "bfloat16 was not measured: this processor does not multiply it, and the floor is what is slow.\n"
        )
        print(tables[-1])
    keep(options.out, f"steps-{options.threads}-thread", tables, data)


if __name__ == "__main__":
    main()
