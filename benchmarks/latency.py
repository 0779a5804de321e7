"""Latency of a forward pass: the base, a merged model, and un-merged adapters of every low-rank family beside PEFT's.

    python benchmarks/latency.py [--threads 2] [--rounds 15] [--rows 1 16] [--out benchmarks/results]

On a CPU: SmolLM2-135M with 1 row of 128 tokens, and fewer families with 16 rows, in a fifth of the rounds, and on
GPT-2-medium shapes with 1 row, one cell of the LoRA paper's latency table. On a GPU all three cells of that table:
32 × 512, 16 × 256 and 1 × 128 on GPT-2-medium shapes. "base again" is the base itself, to see what a difference from 1
means.
"""

import argparse
from functools import partial
from pathlib import Path

import peft
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import rankwise as rw
from cases import Case, Problem
from measure import Goal, Row, goal_table, interleaved, keep, table
from models import smollm2_problem
from rankwise.adapter import Method

METHODS: dict[str, Method] = {
    "LoRA r=8": rw.LoRA(rank=8, also_train=()),
    "AdaLoRA r=8": rw.AdaLoRA(rank=8, target_rank=8, also_train=()),
    "AFLoRA r=4": rw.AFLoRA(rank=4, also_train=()),
    "VeRA r=256": rw.VeRA(rank=256, also_train=()),
    "SoRA r=8": rw.SoRA(rank=8, also_train=()),
}
EVERY_FAMILY, SLOWEST = "SmolLM2-135M, 1 × 128", "SmolLM2-135M, 16 × 128"


def gpt2_medium(rows: int, tokens: int) -> Problem:
    config = GPT2Config(n_embd=1024, n_layer=24, n_head=16, use_cache=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = GPT2LMHeadModel(config)
        ids = torch.randint(0, config.vocab_size, (rows, tokens))
    return Problem(model, {"input_ids": ids})


def filled(adaptation: rw.Adaptation) -> rw.Adaptation:
    """With an update that is not 0."""
    for adapter in adaptation.adapters.values():
        for p in adapter.parameters(recurse=False):
            if not p.any():
                nn.init.normal_(p, std=0.02)
    return adaptation


def forward(name: str, problem: Problem, model: nn.Module) -> Case:
    def step() -> None:
        with torch.inference_mode():
            model(**problem.batch)

    return Case(name, step, 0, lambda: None)  # type: ignore[arg-type]


def merged(problem: Problem) -> nn.Module:
    """On weights of its own: the others keep the base's."""
    own = Problem(problem.model, problem.batch).alike()
    for p in own.parameters():
        p.data = p.data.clone()
    return filled(rw.adapt(own, METHODS["LoRA r=8"])).merge()


def cases(problem: Problem, families: int) -> list[Case]:
    """The base twice, a merged model, PEFT's LoRA and the first `families` of METHODS."""
    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=set(problem.linears()))
    models = {"base": problem.alike(), "base again": problem.alike(), "merged": merged(problem)}
    models["PEFT LoRA r=8"] = peft.get_peft_model(problem.alike(), config)
    for name, method in list(METHODS.items())[:families]:
        models[name] = filled(rw.adapt(problem.alike(), method)).model
    return [forward(name, problem, model.eval()) for name, model in models.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16], help="of SmolLM2, on a CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cuda = torch.cuda.is_available()
    medium = [(32, 512), (16, 256), (1, 128)] if cuda else [(1, 128)]
    problems = {f"GPT-2-medium shapes, {r} × {t}": partial(gpt2_medium, r, t) for r, t in medium}
    if not cuda:
        problems |= {f"SmolLM2-135M, {rows} × 128": partial(smollm2_problem, rows) for rows in options.rows}
    tables, goals, data = [], [], {}
    for title, make in problems.items():
        problem = make()
        problem.batch.pop("labels", None)
        rounds = max(2, options.rounds // 5) if title == SLOWEST else options.rounds
        compared = cases(problem, families=len(METHODS) if cuda or title == EVERY_FAMILY else 1)
        rows: list[Row] = interleaved(compared, rounds, warmups=1, cuda=cuda)
        tables.append(table(rows, title))
        again, own = rows[1]["ratio"], rows[2]["ratio"]
        goals.append(Goal(f"merged ÷ base, {title} (base again {again})", own, 1.02))
        data[title] = rows
        print(tables[-1], flush=True)
    tables.append(goal_table(goals))
    print(tables[-1])
    keep(options.out, "latency", tables, data)


if __name__ == "__main__":
    main()
