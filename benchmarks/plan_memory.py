"""What `rankwise.plan` says a run takes, against what real runs took: MiniLM and SmolLM2, each in its own process.

    python benchmarks/plan_memory.py [--out benchmarks/results]

Measured is resident memory, as Linux counts it: its high-water mark over three training steps (VmHWM, reset when the
model is loaded), less what was resident before that, when all libraries were loaded and a tiny model had made a step.
Planned is Plan.memory.peak and the copies on the processor, from the config alone. Both kinds of malloc are shown: as
it is, and told to give back what is freed (MALLOC_MMAP_THRESHOLD_), without the holes that it keeps otherwise.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig

import rankwise as rw
from measure import keep
from models import has_bfloat16
from rankwise.adapter import Method
from rankwise.demo import minilm, smollm2

STEPS, RUN = 3, 1000
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


@dataclass(frozen=True)
class Case:
    """One run."""

    model: str
    method: Method
    rows: int
    length: int
    precision: str = "fp32"
    checkpointing: bool = False

    def __str__(self) -> str:
        return f"{self.model} {self.method.name} {self.rows}×{self.length} {self.precision}" + (
            ", checkpointing" if self.checkpointing else ""
        )

    @property
    def folder(self) -> str:
        return str(minilm() if self.model == "MiniLM" else smollm2())


LORA, ADALORA, AFLORA = rw.LoRA(rank=8), rw.AdaLoRA(rank=12, target_rank=8), rw.AFLoRA(rank=4)
FULL = rw.FullFineTuning()
CASES = [
    *(Case("MiniLM", method, 32, 128) for method in (LORA, ADALORA, AFLORA, FULL)),
    Case("MiniLM", ADALORA, 32, 128, checkpointing=True),
    *(Case("SmolLM2", method, 4, 128) for method in (LORA, ADALORA, AFLORA, FULL)),
    Case("SmolLM2", LORA, 4, 128, checkpointing=True),
]
if has_bfloat16():
    CASES += [Case("MiniLM", LORA, 32, 128, precision="bf16"), Case("SmolLM2", ADALORA, 2, 256, precision="bf16")]


def planned(case: Case) -> rw.Plan:
    return rw.plan(
        case.folder,
        case.method,
        batch_size=case.rows,
        sequence_length=case.length,
        total_steps=RUN,
        precision=case.precision,  # type: ignore[arg-type]
        gradient_checkpointing=case.checkpointing,
        dtype=torch.float32,
    )


def status(field: str) -> int:
    """Bytes, of VmRSS or VmHWM."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def steps(model: nn.Module, method: Method, batch: dict[str, Tensor], precision: str) -> None:
    adaptation = rw.adapt(model, method)
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=1e-4)
    with adaptation.attached(optimizer, RUN):
        for _ in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            del loss


def measure(case: Case) -> int:
    """Peak bytes of the case in this process."""
    torch.manual_seed(0)
    causal = case.model == "SmolLM2"
    tiny = BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=100)
    few = torch.zeros(2, 8, dtype=torch.long)
    steps(
        AutoModelForSequenceClassification.from_config(tiny).train(),
        case.method if case.method.name != "adalora" else rw.AdaLoRA(rank=12, target_rank=8),
        {"input_ids": few, "attention_mask": torch.ones_like(few), "labels": few[:, 0]},
        case.precision,
    )
    before = status("VmRSS")
    loader = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model = loader.from_pretrained(case.folder, dtype=torch.float32).train()
    model.config.use_cache = False
    if case.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(5, model.config.vocab_size, (case.rows, case.length))
    labels = ids if causal else torch.zeros(case.rows, dtype=torch.long)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    steps(
        model, case.method, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}, case.precision
    )
    return status("VmHWM") - before


def measured(index: int, environment: dict[str, str]) -> int:
    """As `measure`, in a process of its own."""
    command = [sys.executable, __file__, "--case", str(index)]
    run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return int(json.loads(run.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--case", type=int, help="measure this one, here")
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(CASES[options.case])))
        return
    head = "| run | planned MiB | measured MiB | planned ÷ measured | ÷ with malloc as it is |"
    lines, data = [head, "|---|---|---|---|---|"], {}
    for index, case in enumerate(CASES):
        memory = planned(case).memory
        peak = memory.peak + memory.copies_on_cpu
        data[str(case)] = row = {**vars(memory), "peak": peak, "measured": measured(index, GIVE_BACK)}
        ratios = [peak / row["measured"]]
        if case.method is LORA and case.precision == "fp32":
            row["measured with malloc as it is"] = measured(index, {})
            ratios.append(peak / row["measured with malloc as it is"])
        cells = [f"{b / 2**20:,.0f}" for b in (peak, row["measured"])] + [f"{r:.3f}" for r in ratios]
        lines.append(f"| {case} | " + " | ".join([*cells, *[""] * (4 - len(cells))]) + " |")
        print(lines[-1], flush=True)
        worst = max(abs(d["peak"] / d["measured"] - 1) for d in data.values())
        told = f"\nWhere malloc gives back what is freed, the plan is off by {100 * worst:.1f} % at most."
        keep(options.out, "plan", ["\n".join([*lines, told]), ""], data)


if __name__ == "__main__":
    main()
