"""What the linears of a model are: attention or feed-forward, and how fused weights are laid out.

A role comes from the table of the model's family, by name. An unknown family falls back on structure: inside a repeated
block, what sits under an attention module is attention and the rest is feed-forward. Matrix shapes say nothing here:
grouped-query attention is not square, and some feed-forward layers are.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

Role = Literal["attention", "ffn", "other"]


@dataclass(frozen=True)
class Family:
    """Name endings of one family of architectures, as regular expressions on whole path components."""

    attention: str
    ffn: str


_BERT = Family(
    r"attention\.(self\.)?(query|key|value|attn\.[qkvo]|query_proj|key_proj|value_proj|pos_key_proj|pos_query_proj"
    r"|in_proj|pos_proj|pos_q_proj)|attention\.output\.dense",
    r"intermediate\.dense|output\.dense",
)
_LLAMA = Family(
    r"(self_attn|attention)\.([qkvo]_proj|qkv_proj|out_proj|dense)",
    r"(mlp|feed_forward|block_sparse_moe.*|mlp\.experts.*|mlp\.shared_expert)\.(gate_proj|up_proj|down_proj|gate_up_proj|fc1|fc2|w[123])",
)
_BART = Family(r"(self_attn|encoder_attn)\.([qkv]_proj|out_proj)", r"(^|.*\.)fc[12]")
_STARCODER2 = Family(r"self_attn\.([qkvo]_proj)", r"mlp\.(c_fc|c_proj)")
_WAV2VEC2 = Family(r"attention\.([qkv]_proj|out_proj)", r"feed_forward\.(intermediate|output)_dense")
_T5 = Family(
    r"(SelfAttention|EncDecAttention|LocalSelfAttention|TransientGlobalSelfAttention)\.[qkvo]",
    r"(DenseReluDense|mlp)\.(wi|wi_0|wi_1|wo)",
)
_GPT2 = Family(r"(attn|crossattention)\.(c_attn|q_attn|c_proj)", r"mlp\.(c_fc|c_proj)")
_DISTILBERT = Family(r"attention\.([qkv]|out)_lin", r"ffn\.lin[12]")
_VIT = Family(
    r"attention\.(attention\.(query|key|value)|output\.dense|[qkvo]_proj|out_proj)",
    r"intermediate\.dense|output\.dense|mlp\.fc[12]",
)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "deberta", "deberta-v2", "ernie"),
        _BERT,
    ),
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma", "gemma2", "gemma3_text"),
        _LLAMA,
    ),
    **dict.fromkeys(("phi", "phi3", "olmo", "olmo2", "smollm3", "stablelm", "granite", "cohere"), _LLAMA),
    **dict.fromkeys(("bart", "mbart", "pegasus", "marian", "whisper", "m2m_100", "opt"), _BART),
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), _T5),
    "gpt2": _GPT2,
    "starcoder2": _STARCODER2,
    "wav2vec2": _WAV2VEC2,
    "distilbert": _DISTILBERT,
    **dict.fromkeys(("vit", "deit", "dinov2"), _VIT),
}


def role_of(name: str, model: nn.Module, model_type: str) -> Role:
    """The role of the linear called `name`."""
    family = FAMILIES.get(model_type)
    if family is not None:
        for role, pattern in (("attention", family.attention), ("ffn", family.ffn)):
            if re.search(rf"(^|\.)({pattern})$", name):
                return role  # type: ignore[return-value]
        return "other"
    return _role_by_structure(name, model)


def _role_by_structure(name: str, model: nn.Module) -> Role:
    parts = name.split(".")
    inside_block = False
    module: nn.Module = model
    for part in parts[:-1]:
        repeated = isinstance(module, nn.ModuleList)
        module = module.get_submodule(part)
        inside_block = inside_block or repeated
        if inside_block and re.search(r"att(entio)?n", f"{type(module).__name__} {part}", re.IGNORECASE):
            # BERT-like layers keep the feed-forward outside the attention module, so its insides are all attention
            return "attention"
    return "ffn" if inside_block else "other"


@dataclass(frozen=True)
class Layout:
    """How one fused output is divided: block names and their sizes from the model's config."""

    names: tuple[str, ...]
    sizes: Callable[[Any, int], tuple[int, ...]]  # (config, d_out) -> rows of each block


def _equal(count: int) -> Callable[[Any, int], tuple[int, ...]]:
    return lambda config, d_out: (d_out // count,) * count


def _grouped_query(config: Any, d_out: int) -> tuple[int, ...]:
    # d_out = (n_heads + 2 n_kv_heads) · head size
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    size = d_out // (heads + 2 * kv)
    return heads * size, kv * size, kv * size


# (model type, last one or two name components) -> layout. Weights that interleave q, k and v head by head (GPT-NeoX,
# BLOOM, Falcon) have no contiguous blocks and are not here.
LAYOUTS: dict[tuple[str, str], Layout] = {
    ("gpt2", "c_attn"): Layout(("q", "k", "v"), _equal(3)),
    ("gpt2", "crossattention.c_attn"): Layout(("k", "v"), _equal(2)),  # its q is a layer of its own
    ("phi3", "qkv_proj"): Layout(("q", "k", "v"), _grouped_query),
    ("phi3", "gate_up_proj"): Layout(("gate", "up"), _equal(2)),
}


def blocks_of(name: str, model_type: str, config: Any, d_out: int) -> dict[str, tuple[int, int]]:
    """Rows (start, stop) of each named block of a fused linear; empty when it is not known to be fused."""
    last = name.split(".")[-2:]
    layout = LAYOUTS.get((model_type, ".".join(last))) or LAYOUTS.get((model_type, last[-1]))
    if layout is None:
        return {}
    stops, start = {}, 0
    for block, size in zip(layout.names, layout.sizes(config, d_out), strict=True):
        stops[block] = (start, start + size)
        start += size
    return stops
