"""Memory of a training step on SmolLM2-135M, 2 × 128 tokens, float32: what a forward pass keeps for the backward pass,
and the most that a whole process holds, beside the floor, PEFT and full fine-tuning.

    python benchmarks/memory.py [--out benchmarks/results]

Kept: bytes of the storages that autograd is given, once each, without parameters. Peak: resident memory of a process of
its own, of one thread, at its highest mark in three steps, less what it held when the model was loaded; the machine's
malloc is told to give back what is freed, for holes that it keeps are luck.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch
from torch import Tensor

from cases import (
    ADALORA,
    AFLORA_FROZEN,
    LORA,
    LORA_DROPOUT,
    Case,
    Problem,
    floor,
    full,
    ours,
    peft_adalora,
    peft_lora,
)
from measure import Goal, goal_table, keep
from models import smollm2_problem

CASES: dict[str, Callable[[Problem], Case]] = {
    "floor": floor,
    "LoRA": lambda p: ours("", LORA, p),
    "LoRA, dropout": lambda p: ours("", LORA_DROPOUT, p),
    "AdaLoRA": lambda p: ours("", ADALORA, p),
    "AFLoRA, all frozen": lambda p: ours("", AFLORA_FROZEN, p),
    "PEFT LoRA": peft_lora,
    "PEFT LoRA, dropout": lambda p: peft_lora(p, dropout=0.05),
    "PEFT AdaLoRA": peft_adalora,
    "full": full,
}
STEPS = 3


def kept_bytes(step: Callable[[], object]) -> int:
    storages: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        source = tensor if tensor._base is None else tensor._base
        if not isinstance(source, torch.nn.Parameter):  # weights are there anyway
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(t.untyped_storage().nbytes() for t in storages.values())


def resident(field: str) -> int:
    """Bytes, of VmRSS now or VmHWM at its highest."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak(name: str) -> int:
    """Of three steps in this process, above the loaded model."""
    problem = smollm2_problem()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high mark begins anew
    case = CASES[name](problem)
    for _ in range(STEPS):
        case.step()
    case.close()
    return resident("VmHWM") - before


def peak_alone(name: str) -> int:
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    environment = os.environ | malloc | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--alone", name]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()[-1])


def goals(kept: dict[str, float], peaks: dict[str, float]) -> list[Goal]:
    """What the figures should be, in MB of 10⁶ bytes."""
    return [
        Goal("kept, LoRA", kept["LoRA"], 361, unit=" MB"),
        Goal("kept, AdaLoRA", kept["AdaLoRA"], 361, unit=" MB"),
        Goal("kept, LoRA with dropout", kept["LoRA, dropout"], 372, unit=" MB"),
        Goal("kept, AFLoRA all frozen ÷ floor", kept["AFLoRA, all frozen"] / kept["floor"], 1.04),
        Goal("peak, LoRA ÷ PEFT LoRA", peaks["LoRA"] / peaks["PEFT LoRA"], 1.0),
        Goal("peak, AdaLoRA ÷ PEFT AdaLoRA", peaks["AdaLoRA"] / peaks["PEFT AdaLoRA"], 1.0),
        Goal("peak, with dropout", peaks["LoRA, dropout"] / peaks["PEFT LoRA, dropout"], 0.95),
        Goal("peak, LoRA ÷ full fine-tuning, model included", _with_model(peaks, "LoRA"), 0.5),
    ]


def _with_model(peaks: dict[str, float], name: str) -> float:
    """Of the whole state of training: the weights, 538 MB, are in both."""
    weights = 538.1
    return (weights + peaks[name]) / (weights + peaks["full"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--alone", choices=CASES, help="print the peak of one case in this process")
    options = parser.parse_args()
    if options.alone:
        print(peak(options.alone))
        return
    with ThreadPool(2) as two_at_a_time:
        peaks = {name: b / 1e6 for name, b in zip(CASES, two_at_a_time.map(peak_alone, CASES), strict=True)}
    problem, kept = smollm2_problem(), {}
    for name, make in CASES.items():
        case = make(problem)
        kept[name] = kept_bytes(case.step) / 1e6
        case.close()
    lines = ["| case | kept for backward, MB | peak above the model, MB |", "|---|---|---|"]
    lines += [f"| {name} | {kept[name]:.1f} | {peaks[name]:.0f} |" for name in CASES]
    tables = ["\n".join([*lines, ""]), goal_table(goals(kept, peaks))]
    print("\n".join(tables))
    keep(options.out, "memory", tables, {"kept": kept, "peaks": peaks})


if __name__ == "__main__":
    main()
