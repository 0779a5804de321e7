"""What removing dead ranks saves inside a run, on SmolLM2-135M: AdaLoRA 12 -> 4, masked and compacted, and AFLoRA
before and after its projections froze.

    python benchmarks/compaction.py [--out benchmarks/results]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import rankwise as rw
from measure import keep
from rankwise.demo import smollm2

STEPS, DECIDED, ROUNDS = 1000, 8, 8
SPANS = {"warmup": 2, "cooldown": STEPS - DECIDED, "every": 2}
BUDGET = {"rank": 12, "target_rank": 4, **SPANS}


class Run:
    """One adapted SmolLM2 with its optimizer, stepped by hand."""

    def __init__(self, method: rw.AdaLoRA | rw.AFLoRA, batch: dict[str, Tensor]) -> None:
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32, use_cache=False)
        self.adaptation = rw.adapt(self.model, method)
        self.optimizer = torch.optim.AdamW(self.adaptation.parameters(), lr=2e-3)
        self.batch, self.attached = batch, ExitStack()
        self.attached.enter_context(self.adaptation.attached(self.optimizer, STEPS))

    def step(self) -> float:
        began = time.perf_counter()
        self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - began

    def sizes(self) -> dict[str, int]:
        state = sum(t.nbytes for s in self.optimizer.state.values() for t in s.values() if isinstance(t, Tensor))
        held = sum(p.numel() for a in self.adaptation.adapters.values() for p in a.parameters(recurse=False))
        with tempfile.TemporaryDirectory() as folder:
            self.adaptation.save(folder)
            file = (Path(folder) / "adapter.safetensors").stat().st_size
        return {"adapter parameters": held, "optimizer bytes": state, "adapter file bytes": file}


def logits_apart(one: Run, change: Callable[[], Any]) -> float:
    """The largest difference that `change` makes to a logit, over the largest logit."""
    with torch.no_grad():
        before = one.model(**one.batch).logits
        change()
        return float((one.model(**one.batch).logits - before).abs().max() / before.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    ids = torch.randint(0, 49152, (2, 128), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids}
    runs = {
        "AdaLoRA 12 → 4, masked": Run(rw.AdaLoRA(**BUDGET), batch),
        "AdaLoRA 12 → 4, compacted": Run(rw.AdaLoRA(**BUDGET), batch),
        "AFLoRA r=4, training": Run(rw.AFLoRA(rank=4, scope="all", warmup=STEPS // 2, cooldown=1), batch),
        "AFLoRA r=4, all frozen": Run(rw.AFLoRA(rank=4, scope="all", **SPANS), batch),
    }
    for run in runs.values():
        for _ in range(DECIDED + 2):
            run.step()
    compacted = runs["AdaLoRA 12 → 4, compacted"]
    apart = logits_apart(compacted, compacted.adaptation.compact)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(run.step())
    columns = ["adapter parameters", "optimizer bytes", "adapter file bytes"]
    lines = ["| run | " + " | ".join(columns) + " | ms / step |", "|---|---|---|---|---|"]
    data: dict[str, Any] = {"largest change of a logit by compaction, over the largest logit": apart}
    for name, run in runs.items():
        sizes, ms = run.sizes(), 1000 * statistics.median(times[name])
        data[name] = {**sizes, "ms": ms}
        lines.append(f"| {name} | " + " | ".join(f"{sizes[c]:,}" for c in columns) + f" | {ms:.0f} |")
        run.attached.close()
    lines.append(f"\nLargest change of a logit by compaction, over the largest logit: {apart:.1e}.")
    print("\n".join(lines))
    keep(options.out, "compaction", ["\n".join(lines), ""], data)


if __name__ == "__main__":
    main()
