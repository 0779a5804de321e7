"""Floating-point operations of one training step, by torch's own counter: AFLoRA r=4 beside VeRA r=1024, ours and
PEFT's, on SmolLM2-135M, 2 × 128 tokens; of the whole step, and of what the adapters add to the floor.

    python benchmarks/flops.py [--out benchmarks/results]
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import rankwise as rw
from cases import AFLORA, AFLORA_FROZEN, LORA, Case, Problem, floor, full, ours, peft_lora, peft_vera
from measure import Goal, goal_table, keep
from models import smollm2_problem

CASES: dict[str, Callable[[Problem], Case]] = {
    "floor": floor,
    "LoRA r=8": lambda p: ours("", LORA, p),
    "PEFT LoRA r=8": peft_lora,
    "AFLoRA r=4": lambda p: ours("", AFLORA, p),
    "AFLoRA r=4, all frozen": lambda p: ours("", AFLORA_FROZEN, p),
    "VeRA r=1024": lambda p: ours("", rw.VeRA(rank=1024, also_train=()), p),
    "PEFT VeRA r=1024": peft_vera,
    "full fine-tuning": full,
}


def _addmm(_into: Sequence[int], a: Sequence[int], b: Sequence[int], **_: object) -> int:
    return 2 * a[0] * a[1] * b[1]


def count(case: Case) -> int:
    seen = {torch.ops.aten.addmm_: _addmm}  # in place, which the counter passes over by itself
    with FlopCounterMode(display=False, custom_mapping=seen) as counter:
        case.step()
    case.close()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    problem = smollm2_problem()
    total = {name: count(make(problem)) for name, make in CASES.items()}
    added = {name: flops - total["floor"] for name, flops in total.items()}
    lines = ["| case | step, 10⁹ | above the floor, 10⁹ |", "|---|---|---|"]
    lines += [f"| {name} | {total[name] / 1e9:.2f} | {added[name] / 1e9:.2f} |" for name in CASES]
    vera = min(("VeRA r=1024", "PEFT VeRA r=1024"), key=total.__getitem__)
    goals = [
        Goal("whole step, VeRA ÷ AFLoRA", total[vera] / total["AFLoRA r=4"], 2.96, at_least=True),
        Goal("adapters alone, VeRA ÷ AFLoRA", added[vera] / added["AFLoRA r=4"], 2.96, at_least=True),
    ]
    tables = ["\n".join([*lines, ""]), goal_table(goals)]
    print("\n".join(tables))
    keep(options.out, "flops", tables, {"total": total})


if __name__ == "__main__":
    main()
