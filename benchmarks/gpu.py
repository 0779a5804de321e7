"""Step time and peak memory on one CUDA GPU: random weights in the shapes of SmolLM2-135M and Llama-3.2-1B, bf16.

python benchmarks/gpu.py [--out benchmarks/results]
"""

import argparse
import gc
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cases import ADALORA, LORA, Case, Problem, every_case, floor, ours
from measure import cuda_peak, interleaved, keep, table

SHAPES = {
    "SmolLM2-135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "Llama-3.2-1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
ROWS, TOKENS = 4, 1024


def make(shape: dict[str, int]) -> Problem:
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **shape)).to(torch.bfloat16)
        ids = torch.randint(0, shape["vocab_size"], (ROWS, TOKENS))
    model.config.use_cache = False
    return Problem(model, {"input_ids": ids, "labels": ids})


def compiled_cases(problem: Problem) -> list[Case]:
    """The floor and our methods under torch.compile."""
    base = floor(problem)
    return [
        Case("floor, eager", base.step, 0, base.close),
        ours("LoRA r=8, compiled", LORA, problem, compiled=True),
        ours("AdaLoRA r=12, compiled", ADALORA, problem, compiled=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    tables, data = [], {}
    for name, shape in SHAPES.items():
        problem = make(shape)
        builders = every_case(problem)
        peaks = {}
        for build in builders:
            case, peak, _ = cuda_peak(build, warmups=2)
            peaks[case] = peak
            gc.collect()
        cases = [build() for build in builders]
        rows = interleaved(cases, options.rounds, warmups=3, cuda=True)
        for row in rows:
            row["peak_mib"] = round(peaks[row["case"]] / 2**20)
        for case in cases:
            case.close()
        del cases
        gc.collect()
        tables.append(table(rows, f"{name} shapes, bf16, {ROWS} × {TOKENS} tokens, eager"))
        print(tables[-1], flush=True)
        compiled = compiled_cases(problem)
        compiled_rows = interleaved(compiled, options.rounds, warmups=4, cuda=True)
        tables.append(table(compiled_rows, f"{name} shapes, compiled"))
        print(tables[-1], flush=True)
        data[name] = {"eager": rows, "compiled": compiled_rows}
        for case in compiled:
            case.close()
        del compiled, problem, builders
        gc.collect()
        torch.cuda.empty_cache()
    keep(options.out, f"gpu-{torch.cuda.get_device_name().replace(' ', '-').lower()}", tables, data)


if __name__ == "__main__":
    main()
