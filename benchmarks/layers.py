"""Milliseconds of the linear layers of one block, forward and backward, beside the same layers frozen, and beside PEFT.

    python benchmarks/layers.py [--rounds 40] [--threads 1] [--out benchmarks/results]

A step of a whole model takes seconds, and differs by a tenth from one to the next on a shared machine; the layers of
one block take milliseconds and can be repeated until a hundredth is seen. Attention, the optimizer, and what a method
decides in a step are not in it: steps.py and allocating.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import peft
import torch
from torch import Tensor, nn

import rankwise as rw
from cases import ADALORA, AFLORA_FROZEN, LORA, Case
from measure import Goal, Row, goal_table, interleaved, keep, table
from rankwise.adapter import Method

Shapes = Sequence[tuple[int, int]]  # (d_in, d_out) of each layer

BLOCKS: dict[str, tuple[int, Shapes]] = {
    "MiniLM, 4 × 32 tokens": (128, [(384, 384)] * 4 + [(384, 1536), (1536, 384)]),
    "SmolLM2-135M, 2 × 128 tokens": (256, [(576, 576), (576, 192)] * 2 + [(576, 1536)] * 2 + [(1536, 576)]),
}


def frozen(shapes: Shapes) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(d_in, d_out, bias=False) for d_in, d_out in shapes).requires_grad_(False)


def ours(shapes: Shapes, method: Method) -> nn.ModuleList:
    layers = frozen(shapes)
    rw.adapt(layers, method)
    return layers


def theirs(shapes: Shapes, config: peft.PeftConfig) -> nn.ModuleList:
    layers = frozen(shapes)
    config.target_modules = {str(i) for i in range(len(shapes))}
    peft.get_peft_model(layers, config)  # in place
    return layers


def case(name: str, layers: nn.ModuleList, tokens: int, shapes: Shapes) -> Case:
    """Every layer by itself: its own input (N, d_in), and a gradient (N, d_out) that comes from above."""
    xs = [torch.randn(tokens, d_in, requires_grad=True) for d_in, _ in shapes]
    gs = [torch.randn(tokens, d_out) for _, d_out in shapes]
    parameters = [p for p in layers.parameters() if p.requires_grad]

    def step() -> Tensor:
        for t in (*xs, *parameters):
            t.grad = None
        for layer, x, g in zip(layers, xs, gs, strict=True):
            layer(x).backward(g)
        return gs[0]

    return Case(name, step, sum(p.numel() for p in parameters), lambda: None)


def measured(tokens: int, shapes: Shapes, rounds: int) -> list[Row]:
    built = {
        "floor": frozen(shapes),
        "LoRA r=8": ours(shapes, LORA),
        "PEFT LoRA r=8": theirs(shapes, peft.LoraConfig(r=8, lora_alpha=8)),
        "AdaLoRA r=12": ours(shapes, ADALORA),
        "PEFT AdaLoRA r=12": theirs(shapes, peft.AdaLoraConfig(init_r=12, target_r=8, total_step=100)),
        "AFLoRA r=4, all frozen": ours(shapes, AFLORA_FROZEN),
    }
    cases = [case(name, layers, tokens, shapes) for name, layers in built.items()]
    return interleaved(cases, rounds, warmups=3, cuda=False)


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Those of a whole step, of which the layers are the larger part."""
    ratio = {row["case"]: row["ratio"] for row in rows}
    return [
        Goal("LoRA r=8 ÷ floor", ratio["LoRA r=8"], 1.12),
        Goal("its overhead ÷ PEFT's", (ratio["LoRA r=8"] - 1) / (ratio["PEFT LoRA r=8"] - 1), 0.55),
        Goal("AdaLoRA r=12 ÷ floor", ratio["AdaLoRA r=12"], 1.16),
        Goal("its overhead ÷ PEFT's", (ratio["AdaLoRA r=12"] - 1) / (ratio["PEFT AdaLoRA r=12"] - 1), 0.4),
        Goal("AFLoRA, all frozen ÷ floor", ratio["AFLoRA r=4, all frozen"], 1.08),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tables, data = [], {}
    for title, (tokens, shapes) in BLOCKS.items():
        rows = measured(tokens, shapes, options.rounds)
        tables += [table(rows, f"One block of {title}, float32"), goal_table(goals(rows))]
        data[title] = rows
        print("\n".join(tables[-2:]), flush=True)
    keep(options.out, "layers", tables, data)


if __name__ == "__main__":
    main()
