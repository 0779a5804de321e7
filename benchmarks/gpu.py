"""Step time and peak memory on one CUDA GPU: random weights in the shapes of SmolLM2-135M and Llama-3.2-1B, bf16.

python benchmarks/gpu.py [--out benchmarks/results]
"""

import argparse
import gc
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import rankwise as rw
from cases import DECIDING, Case, every_case, floor, ours
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


def make(shape: dict[str, int]) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **shape)).to(torch.bfloat16)
        ids = torch.randint(0, shape["vocab_size"], (ROWS, TOKENS))
    model.config.use_cache = False
    return model, {"input_ids": ids, "labels": ids}


def compiled_cases(model: nn.Module, batch: dict[str, Tensor]) -> list[Case]:
    """The floor and our methods under torch.compile."""
    base = floor(model, batch, None)
    adalora = rw.AdaLoRA(rank=12, target_rank=8, every=50, **DECIDING)
    return [
        Case("floor, eager", base.step, 0, base.close),
        ours("ours LoRA r=8, compiled", rw.LoRA(rank=8), model, batch, None, compiled=True),
        ours("ours AdaLoRA r=12, compiled", adalora, model, batch, None, compiled=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    tables, data = [], {}
    for name, shape in SHAPES.items():
        model, batch = make(shape)
        builders = every_case(model, batch, None)
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
        compiled = compiled_cases(model, batch)
        compiled_rows = interleaved(compiled, options.rounds, warmups=4, cuda=True)
        tables.append(table(compiled_rows, f"{name} shapes, compiled"))
        print(tables[-1], flush=True)
        data[name] = {"eager": rows, "compiled": compiled_rows}
        for case in compiled:
            case.close()
        del compiled, model, batch
        gc.collect()
        torch.cuda.empty_cache()
    keep(options.out, f"gpu-{torch.cuda.get_device_name().replace(' ', '-').lower()}", tables, data)


if __name__ == "__main__":
    main()
