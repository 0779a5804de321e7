"""What deciding costs: scores, orthogonality and masks of AdaLoRA in one step, beside PEFT's, and how that grows.

    python benchmarks/allocating.py [--threads 1] [--out benchmarks/results]

No model is run: gradients are made once, and the controller is called as the optimizer's hook calls it. PEFT's share is
`update_and_allocate` and forward and backward of its orthogonality term. Both are in the phase in which the budget
falls, where every step is scored; one step in fifty allocates.
"""

import argparse
import math
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

import rankwise as rw
from cases import ADALORA, RUN
from measure import Goal, goal_table, keep

SMOLLM2 = [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)] * 30  # d_in, d_out
DEBERTA = [(768, 768)] * 48 + [(768, 3072), (3072, 768)] * 12
COUNTS = [10**3, 10**4, 10**5, 10**6]  # triplets, of layers 64 wide with 50 each


def layers(sizes: list[tuple[int, int]]) -> nn.Module:
    return nn.ModuleDict({f"layer{i}": nn.Linear(*size, bias=False) for i, size in enumerate(sizes)})


def give_gradients(parameters: list[nn.Parameter]) -> None:
    for p in parameters:
        p.grad = torch.randn_like(p) * 1e-3


def ours(sizes: list[tuple[int, int]], method: rw.AdaLoRA) -> Callable[[], object]:
    adaptation = rw.adapt(layers(sizes), method)
    controller = method.controller(adaptation.adapters, RUN, None)
    give_gradients(controller.parameters())

    def step() -> None:
        controller.observe(None)
        controller.act()

    return step


def theirs(sizes: list[tuple[int, int]]) -> Callable[[], object]:
    names = [f"layer{i}" for i in range(len(sizes))]
    schedule = {"tinit": 0, "tfinal": RUN // 2, "deltaT": 50, "total_step": RUN}
    config = peft.AdaLoraConfig(init_r=12, target_r=8, lora_alpha=12, target_modules=names, **schedule)
    model = peft.get_peft_model(layers(sizes), config).base_model
    give_gradients([p for p in model.parameters() if p.requires_grad])
    matrices = [p for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n]
    steps = 0

    def step() -> None:
        nonlocal steps
        terms = [_distance(p if p.shape[0] < p.shape[1] else p.T) for p in matrices]  # as in PEFT's forward
        (0.5 * torch.stack(terms).mean()).backward()
        model.update_and_allocate(steps)
        steps += 1

    return step


def _distance(rows: torch.Tensor) -> torch.Tensor:
    return torch.norm(rows @ rows.T - torch.eye(rows.shape[0]), p="fro")


def milliseconds(step: Callable[[], object], repeats: int) -> float:
    """Median of `repeats` steps, the time of this process alone where it has one thread."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(repeats):
        began = clock()
        step()
        times.append(clock() - began)
    return 1000 * statistics.median(times)


def beside_peft(sizes: list[tuple[int, int]], rounds: int = 5) -> dict[str, float]:
    steps = {"rankwise": ours(sizes, ADALORA), "PEFT": theirs(sizes)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        milliseconds(step, 3)
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(milliseconds(step, 10))
    return {name: statistics.median(t) for name, t in times.items()}


def growth() -> tuple[list[dict[str, float]], float, float]:
    """Milliseconds by number of triplets, the log-log slope, and the most memory beside the factors and gradients, in
    units of the factors, at the largest number."""
    method = rw.AdaLoRA(rank=50, target_rank=25, every=2, warmup=0, cooldown=RUN // 2)
    rows, extra = [], math.nan
    for count in COUNTS:
        model_layers = [(64, 64)] * (count // 50)
        adaptation = rw.adapt(layers(model_layers), method)
        parameters = adaptation.parameters()
        give_gradients(parameters)
        factors = sum(p.nbytes for p in parameters)
        before = _resident()
        controller = method.controller(adaptation.adapters, RUN, None)

        def step(controller: Any = controller) -> None:
            controller.observe(None)
            controller.act()

        repeats = max(4, min(50, 10**5 // count))
        rows.append({"triplets": count, "ms": milliseconds(step, repeats)})
        extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / factors
    xs, ys = [math.log(r["triplets"]) for r in rows], [math.log(r["ms"]) for r in rows]
    return rows, statistics.linear_regression(xs, ys).slope, extra


def _resident() -> int:
    line = next(n for n in Path("/proc/self/status").read_text().splitlines() if n.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    compared = {"SmolLM2, 210 matrices": beside_peft(SMOLLM2), "DeBERTa-base, 72 matrices": beside_peft(DEBERTA)}
    rows, slope, extra = growth()
    lines = ["| shapes, r = 12 | rankwise, ms | PEFT, ms |", "|---|---|---|"]
    lines += [f"| {name} | {t['rankwise']:.1f} | {t['PEFT']:.1f} |" for name, t in compared.items()]
    lines += ["", "| triplets of 64 × 64 layers | ms |", "|---|---|"]
    lines += [f"| {row['triplets']:,} | {row['ms']:.1f} |" for row in rows]
    goals = [
        *(Goal(f"PEFT ÷ rankwise, {n}", t["PEFT"] / t["rankwise"], 10, at_least=True) for n, t in compared.items()),
        Goal("log-log slope", slope, 1.05),
        Goal("memory beside factors and gradients ÷ factors", extra, 2.5),
    ]
    tables = ["\n".join([*lines, ""]), goal_table(goals)]
    print("\n".join(tables))
    keep(options.out, "allocating", tables, {"compared": compared, "growth": rows, "slope": slope, "extra": extra})


if __name__ == "__main__":
    main()
