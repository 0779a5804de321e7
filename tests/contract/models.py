"""The architectures: each a small random model with its head, a batch that gives a loss, and what its parts are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

Batch = dict[str, Tensor]
VOCABULARY, LENGTH, LABELS = 100, 7, 3

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": 40}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TWO_STACKS = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "vocab_size": VOCABULARY,
    "dropout": 0.0,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    **_IDS,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}


@dataclass(frozen=True)
class Architecture:
    """One row. `roles` are the endings of every backbone linear; `head` what `also_train="auto"` must find."""

    name: str
    kind: Literal["encoder", "decoder", "encoder-decoder", "vision", "speech"]
    build: Callable[[], PreTrainedModel]
    batch: Callable[[], Batch]
    roles: Mapping[str, tuple[str, ...]]
    head: tuple[str, ...] = ()
    linears: int = 12  # of attention and feed-forward, in the whole backbone
    untouched: tuple[str, ...] = ()  # linears that no keyword may ever take


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def tokens() -> Tensor:
    """Two rows, the second padded."""
    ids = torch.randint(3, VOCABULARY, (2, LENGTH), generator=_generator())
    ids[1, -2:] = 0
    return ids


def classification() -> Batch:
    ids = tokens()
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor([0, 2])}


def language() -> Batch:
    ids = torch.randint(3, VOCABULARY, (2, LENGTH), generator=_generator())
    return {"input_ids": ids, "labels": ids.clone()}


def sequences() -> Batch:
    return {**classification(), "labels": torch.randint(3, VOCABULARY, (2, 5), generator=_generator())}


def images() -> Batch:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=_generator()), "labels": torch.tensor([0, 2])}


def speech() -> Batch:
    features = torch.randn(2, 8, 40, generator=_generator())
    return {"input_features": features, "labels": torch.randint(3, VOCABULARY, (2, 5), generator=_generator())}


def _built(cls: type[PreTrainedModel], config: Any) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        torch.manual_seed(11)
        return cls(config)

    return build


_BERT_ROLES = {
    "attention": ("self.query", "self.key", "self.value", "attention.output.dense"),
    "ffn": ("intermediate.dense", "0.output.dense", "1.output.dense"),
}
_LLAMA_ROLES = {
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    "ffn": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}
_BART_ROLES = {
    "attention": (
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
        *("encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj", "encoder_attn.out_proj"),
    ),
    "ffn": ("fc1", "fc2"),
}
_GPT2_ROLES = {"attention": ("attn.c_attn", "attn.c_proj"), "ffn": ("mlp.c_fc", "mlp.c_proj")}

_GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 40,
    "vocab_size": VOCABULARY,
    **_IDS,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}

ARCHITECTURES = [
    Architecture(
        "bert",
        "encoder",
        _built(BertForSequenceClassification, BertConfig(**_SIZES, **_DRY, **_TEXT, num_labels=LABELS)),
        classification,
        roles={**_BERT_ROLES, "other": ("pooler.dense",)},
        head=("classifier",),
        untouched=("classifier",),
    ),
    Architecture(
        "deberta-v2",
        "encoder",
        _built(
            DebertaV2ForSequenceClassification,
            DebertaV2Config(
                **{**_SIZES, **_DRY, **_TEXT, "num_labels": LABELS, "pooler_hidden_size": 32, "pooler_dropout": 0.0},
                relative_attention=True,
                pos_att_type=["p2c", "c2p"],
                position_buckets=8,
                share_att_key=False,
                norm_rel_ebd="layer_norm",
                position_biased_input=False,
            ),
        ),
        classification,
        roles={
            "attention": (
                *("self.query_proj", "self.key_proj", "self.value_proj", "attention.output.dense"),
                *("self.pos_query_proj", "self.pos_key_proj"),
            ),
            "ffn": _BERT_ROLES["ffn"],
        },
        head=("pooler", "classifier"),
        linears=16,
        untouched=("pooler.dense", "classifier"),
    ),
    Architecture(
        "roberta",
        "encoder",
        _built(RobertaForSequenceClassification, RobertaConfig(**_SIZES, **_DRY, **_TEXT, **_IDS, num_labels=LABELS)),
        classification,
        roles=_BERT_ROLES,
        head=("classifier",),
        untouched=("classifier.dense", "classifier.out_proj"),
    ),
    Architecture(
        "mpnet",
        "encoder",
        _built(MPNetForSequenceClassification, MPNetConfig(**_SIZES, **_DRY, **_TEXT, num_labels=LABELS)),
        classification,
        roles={**_BERT_ROLES, "attention": ("attn.q", "attn.k", "attn.v", "attn.o")},
        head=("classifier",),
        untouched=("classifier.dense", "classifier.out_proj"),
    ),
    Architecture(
        "gpt2",
        "decoder",
        _built(GPT2LMHeadModel, GPT2Config(**_GPT2)),
        language,
        roles=_GPT2_ROLES,
        linears=8,
        untouched=("lm_head",),
    ),
    Architecture(
        "gpt2-classifier",
        "decoder",
        _built(GPT2ForSequenceClassification, GPT2Config(**_GPT2, num_labels=LABELS)),
        classification,
        roles=_GPT2_ROLES,
        head=("score",),
        linears=8,
        untouched=("score",),
    ),
    Architecture(
        "llama-gqa",
        "decoder",
        _built(LlamaForCausalLM, LlamaConfig(**_SIZES, **_TEXT, num_key_value_heads=2)),
        language,
        roles=_LLAMA_ROLES,
        linears=14,
        untouched=("lm_head",),
    ),
    Architecture(
        "qwen2",
        "decoder",
        _built(Qwen2ForCausalLM, Qwen2Config(**_SIZES, **_TEXT, num_key_value_heads=2, tie_word_embeddings=True)),
        language,
        roles=_LLAMA_ROLES,
        linears=14,
        untouched=("lm_head",),
    ),
    Architecture(
        "bart",
        "encoder-decoder",
        _built(BartForConditionalGeneration, BartConfig(**_TWO_STACKS, max_position_embeddings=40)),
        sequences,
        roles=_BART_ROLES,
        linears=32,
        untouched=("lm_head",),
    ),
    Architecture(
        "t5",
        "encoder-decoder",
        _built(
            T5ForConditionalGeneration,
            T5Config(
                d_model=32,
                d_kv=8,
                d_ff=48,
                num_layers=2,
                num_heads=4,
                vocab_size=VOCABULARY,
                dropout_rate=0.0,
                pad_token_id=0,
                eos_token_id=2,
                decoder_start_token_id=0,
            ),
        ),
        sequences,
        roles={
            "attention": (
                *("SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o"),
                *("EncDecAttention.q", "EncDecAttention.k", "EncDecAttention.v", "EncDecAttention.o"),
            ),
            "ffn": ("DenseReluDense.wi", "DenseReluDense.wo"),
        },
        linears=32,
        untouched=("lm_head",),
    ),
    Architecture(
        "vit",
        "vision",
        _built(
            ViTForImageClassification,
            ViTConfig(**_SIZES, **_DRY, image_size=16, patch_size=4, num_labels=LABELS),
        ),
        images,
        roles={
            "attention": ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
            "ffn": ("mlp.fc1", "mlp.fc2"),
        },
        head=("classifier",),
        untouched=("classifier",),
    ),
    Architecture(
        "whisper",
        "speech",
        _built(
            WhisperForConditionalGeneration,
            WhisperConfig(**_TWO_STACKS, num_mel_bins=8, max_source_positions=20, max_target_positions=20),
        ),
        speech,
        roles=_BART_ROLES,
        linears=32,
        untouched=("proj_out",),
    ),
]

BY_NAME = {row.name: row for row in ARCHITECTURES}
ENCODER = BY_NAME["bert"]

# tested every time, the others in the slow proofs: relative positions, and weights that are fused and transposed,
# shared by groups, or in two stacks
OFTEN = ("bert", "deberta-v2", "gpt2", "llama-gqa", "bart")
