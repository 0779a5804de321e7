"""Bytes that decisions send, and memory of one GPU, on 8 to 1,024 GPUs: the tables of docs/scaling.md.

    python benchmarks/scaling.py

Nothing is run: shapes are counted on the meta device, memory is that of `rankwise.plan`, spread as FSDP2 spreads it.
"""

from dataclasses import dataclass
from functools import cache

import torch
from transformers import LlamaConfig

import rankwise as rw
from rankwise.adapter import Method

GPUS = (8, 64, 256, 1024)
SIZES = {  # hidden size, blocks, heads, inner size: those of Llama 3.1; 8 heads for keys and values, 128,256 tokens
    "8B": (4096, 32, 32, 14336),
    "70B": (8192, 80, 64, 28672),
    "405B": (16384, 126, 128, 53248),
}
METHODS: dict[str, Method] = {
    "lora": rw.LoRA(rank=8),
    "adalora": rw.AdaLoRA(rank=12, target_rank=8),
    "aflora": rw.AFLoRA(rank=4, scope="all"),
}
TOKENS = 2048  # of the one row that each GPU has in a step
BFLOAT16 = 2  # bytes


@dataclass(frozen=True)
class Layer:
    """One adapted matrix."""

    rank: int
    d_in: int
    d_out: int


def config(size: str) -> LlamaConfig:
    hidden, blocks, heads, inner = SIZES[size]
    widths = {"hidden_size": hidden, "intermediate_size": inner, "vocab_size": 128256}
    depths = {"num_hidden_layers": blocks, "num_attention_heads": heads, "num_key_value_heads": 8}
    return LlamaConfig(**widths, **depths, tie_word_embeddings=False, architectures=["LlamaForCausalLM"])


@cache
def planned(size: str, method: str) -> rw.Plan:
    return rw.plan(
        config(size),
        METHODS[method],
        batch_size=1,
        sequence_length=TOKENS,
        total_steps=1000,
        precision="bf16",
        dtype=torch.bfloat16,
        gradient_checkpointing=True,
    )


def layers(size: str, method: str) -> list[Layer]:
    """Every adapted matrix, by the sizes in the config."""
    hidden, _, heads, inner = SIZES[size]
    kv = 8 * hidden // heads
    shapes = {"q": (hidden, hidden), "k": (hidden, kv), "v": (hidden, kv), "o": (hidden, hidden)}
    shapes |= {"gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden)}
    ranks = planned(size, method).layers
    return [Layer(rank, *shapes[name.rpartition(".")[2].removesuffix("_proj")]) for name, rank in ranks.items()]


def sent(size: str, gpus: int) -> dict[str, int]:
    """Bytes, by the table "what is sent" of docs/distributed.md."""
    adapted = layers(size, "adalora")
    gram = 4 * sum(layer.rank**2 for layer in adapted)
    rows = 4 * sum(gpus * -(-layer.rank // gpus) * layer.d_in for layer in adapted)
    return {
        "step, across ranks": 2 * gram,
        "step, as fully_shard cuts": gram + rows,
        "allocation": 12 * sum(layer.rank for layer in adapted),
        "freezing": 4 * 2 * len(layers(size, "aflora")),
    }


def memory(size: str, method: str, gpus: int) -> int:
    """Bytes of one GPU: what is kept is spread; activations are not, and two blocks are there whole in bfloat16."""
    plan = planned(size, method)
    kept = plan.memory.weights + plan.memory.state + plan.memory.moments + plan.memory.gradients
    assert plan.memory.activations is not None
    embedding = SIZES[size][0] * 128256
    block = (plan.total - 2 * embedding) // SIZES[size][1]
    return kept // gpus + plan.memory.activations + 2 * BFLOAT16 * max(block, embedding)


def words(count: float) -> str:
    """1234567 -> "1.23 MB", in powers of ten."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def sent_table() -> str:
    lines = ["| model | GPUs | AdaLoRA, each step, `across_ranks` | the same without it | an allocation | a freezing |"]
    lines.append("|---|---|---|---|---|---|")
    for size in SIZES:
        for gpus in GPUS:
            lines.append(f"| {size} | {gpus:,} | " + " | ".join(words(n) for n in sent(size, gpus).values()) + " |")
    return "\n".join(lines)


def memory_table() -> str:
    lines = ["| model | GPUs | " + " | ".join(METHODS) + " |", "|---|---|---|---|---|"]
    for size in SIZES:
        for gpus in GPUS:
            lines.append(f"| {size} | {gpus:,} | " + " | ".join(words(memory(size, m, gpus)) for m in METHODS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(sent_table(), memory_table(), sep="\n\n")
