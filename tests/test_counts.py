"""Parameters by the papers' tables, from configs alone: every model lies on the meta device and has no task head."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    AutoModel,
    BartConfig,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    RobertaConfig,
)

import rankwise as rw
from rankwise.adapter import Method

_V3 = {
    "relative_attention": True,
    "position_buckets": 256,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "max_position_embeddings": 512,
}


def _encoder(kind: type[PretrainedConfig], width: int, ffn: int, layers: int, heads: int, **more: object):
    return kind(hidden_size=width, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads, **more)


DEBERTA_V3_BASE = _encoder(DebertaV2Config, 768, 3072, 12, 12, vocab_size=128100, **_V3)
DEBERTA_V2_XXL = _encoder(DebertaV2Config, 1536, 6144, 48, 24, vocab_size=128100, **_V3)
ROBERTA_BASE = _encoder(RobertaConfig, 768, 3072, 12, 12, vocab_size=50265)
ROBERTA_LARGE = _encoder(RobertaConfig, 1024, 4096, 24, 16, vocab_size=50265)
GPT2_M = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
GPT2_L = GPT2Config(n_embd=1280, n_layer=36, n_head=20)
GPT3 = GPT2Config(n_embd=12288, n_layer=96, n_head=96, n_positions=2048, architectures=["GPT2LMHeadModel"])
BART_LARGE = BartConfig()
LLAMA_7B = LlamaConfig()
QV = {RobertaConfig: ["query", "value"], DebertaV2Config: ["query_proj", "value_proj"], GPT2Config: ["c_attn[q,v]"]}


def bare(config: PretrainedConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModel.from_config(config)


def trainable(config: PretrainedConfig, method: Method) -> int:
    model = bare(config)
    method.install(model)
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])  # nothing was allocated
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def qv(config: PretrainedConfig, rank: int) -> int:
    return trainable(config, rw.LoRA(rank=rank, targets=QV[type(config)]))


@pytest.mark.parametrize(
    ("config", "exact"),
    [(DEBERTA_V3_BASE, 183_831_552), (GPT2_L, 774_030_080), (BART_LARGE, 406_291_456), (GPT2_M, 354_823_168)],
    ids=["deberta-v3-base", "gpt2-l", "bart-large", "gpt2-m (the paper prints 354.92M)"],
)
def test_whole_models(config: PretrainedConfig, exact: int):
    assert sum(p.numel() for p in bare(config).parameters()) == exact


ROWS: dict[str, tuple[Callable[[], int], int]] = {
    "deberta-v3-base r=8": (lambda: trainable(DEBERTA_V3_BASE, rw.LoRA(rank=8)), 1_327_104),
    "deberta-v3-base r=2": (lambda: trainable(DEBERTA_V3_BASE, rw.LoRA(rank=2)), 331_776),
    "adalora at the start": (lambda: trainable(DEBERTA_V3_BASE, rw.AdaLoRA(rank=12)), 1_991_520),
    "aflora at the start": (lambda: trainable(DEBERTA_V3_BASE, rw.AFLoRA(rank=4)), 451_872),
    "aflora, frozen from the start": (lambda: trainable(DEBERTA_V3_BASE, rw.AFLoRA(rank=4, scope="none")), 83_232),
    "roberta-base r=8 q,v": (lambda: qv(ROBERTA_BASE, 8), 294_912),
    "roberta-large r=8 q,v": (lambda: qv(ROBERTA_LARGE, 8), 786_432),
    "elora r=1024": (lambda: trainable(DEBERTA_V3_BASE, rw.VeRA(rank=1024)), 156_672),
    "deberta-v2-xxl r=16 q,v": (lambda: qv(DEBERTA_V2_XXL, 16), 4_718_592),
    "gpt2-m r=4 q,v (printed: 0.35M)": (lambda: qv(GPT2_M, 4), 393_216),
    "gpt2-l r=4 q,v (printed: 0.77M)": (lambda: qv(GPT2_L, 4), 737_280),
    "gpt3 r=1 q,v": (lambda: qv(GPT3, 1), 4_718_592),
    "gpt3 r=2 v": (lambda: trainable(GPT3, rw.LoRA(rank=2, targets=["c_attn[v]"])), 4_718_592),
    "gpt3 r=8 q,v": (lambda: qv(GPT3, 8), 37_748_736),
    "gpt3 r=4 q,k,v,o": (
        lambda: trainable(GPT3, rw.LoRA(rank=4, targets=["c_attn[q,k,v]", "attn.c_proj"])),
        37_748_736,
    ),
    "bart-large r=1": (lambda: trainable(BART_LARGE, rw.LoRA(rank=1)), 540_672),
    "bart-large r=2": (lambda: trainable(BART_LARGE, rw.LoRA(rank=2)), 1_081_344),
    "bart-large r=16": (lambda: trainable(BART_LARGE, rw.LoRA(rank=16)), 8_650_752),
    "llama-7b r=32 q,k,v,up,down": (
        lambda: trainable(LLAMA_7B, rw.LoRA(rank=32, targets=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"])),
        56_098_816,
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_the_tables(row: str):
    count, exact = ROWS[row]
    assert count() == exact


@pytest.mark.parametrize(("share", "rank"), [(0.26, 2), (0.13, 1)])
def test_bart_large_in_percent(share: float, rank: int):
    assert int(100 * 100 * 540_672 * rank / 406_291_456) / 100 == share


@pytest.mark.parametrize(("rank", "printed", "decimal"), [(8, 1.27, 1.33), (2, 0.32, 0.33)])
def test_adalora_s_table_counts_in_units_of_2_to_the_20(rank: int, printed: float, decimal: float):
    """LoRA at the same rank is printed with decimal millions, 1.33M and 0.33M."""
    count = trainable(DEBERTA_V3_BASE, rw.LoRA(rank=rank))
    assert round(count / 2**20, 2) == printed
    assert round(count / 10**6, 2) == decimal


def test_what_576_triplets_can_cost():
    """Attention's 576 triplets are the cheapest. The dearest choice takes all 288 of the feed-forward layers: the count
    of 2,211,840 for 576 of them would take a start rank of 24."""
    plan = rw.plan(
        DEBERTA_V3_BASE, rw.AdaLoRA(rank=12, target_rank=8), total_steps=1000, sequence_length=8, batch_size=1
    )
    end = plan.trainable.end
    assert end is not None
    heads, gates = plan.heads, 576
    assert end.least - heads == 576 * 1536 + gates == 884_736 + gates
    assert end.most - heads == 288 * 3840 + 288 * 1536 + gates
    assert end.expected - heads == 1_327_104 + gates
    assert end.least < 1.27e6 + heads < end.most


@pytest.mark.parametrize(("epochs", "ideal"), [(10, 138_528), (20, 124_704)])
def test_aflora_s_average_over_a_run(epochs: int, ideal: int):
    """vectors + f · projections, with f = t_i/T + (1 − t_i/T − t_f/T)/4, is the average of infinitely many steps.

    Decisions act from the next step on, so a run of T steps has 3/2 of a step more of the projections."""
    steps_per_epoch = 2000
    method = rw.AFLoRA.paper(rank=4, every=1)
    plan = rw.plan(
        DEBERTA_V3_BASE,
        method,
        total_steps=epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        batch_size=1,
        sequence_length=8,
    )
    course, heads = plan.trainable, plan.heads
    assert (course.start - heads, course.end.expected - heads) == (451_872, 83_232)
    assert course.average - heads == pytest.approx(ideal + 1.5 * 368_640 / (epochs * steps_per_epoch), abs=0.01)
    assert round(course.average - heads, -3) == round(ideal, -3)


class Everything(Method):
    """Full fine-tuning in ten lines: the plan knows no method by name."""

    name = "everything"

    def install(self, model: torch.nn.Module) -> rw.adapter.Installed:
        return rw.adapter.Installed({}, dict(model.named_parameters()), {}, lambda: None)


def test_gpt3_by_the_lora_paper():
    """Training state 1.2 TB → 350 GB, checkpoint 350 GB → 35 MB, with half-precision weights; r=4 on q and v."""
    settings = {"batch_size": 1, "sequence_length": 128, "dtype": torch.float16}
    full = rw.plan(GPT3, Everything(), **settings).memory
    lora = rw.plan(GPT3, rw.LoRA(rank=4, targets=["c_attn[q,v]"]), **settings).memory
    TB, GB, MB = 1e12, 1e9, 1e6
    # two moments in half precision beside the weights, with the gradients or without: the paper's number lies between
    without_gradients = full.weights + full.moments
    assert without_gradients == pytest.approx(1.05 * TB, rel=0.01)
    assert without_gradients + full.gradients == pytest.approx(1.40 * TB, rel=0.01)
    assert without_gradients < 1.2 * TB < without_gradients + full.gradients
    assert lora.weights + lora.moments + lora.gradients == pytest.approx(350 * GB, rel=0.01)
    assert full.adapter_file == pytest.approx(350 * GB, rel=0.01)
    assert lora.adapter_file / 2 == pytest.approx(37.7 * MB, rel=0.01)  # float32 here, half precision there
    assert lora.adapter_file / 2 / 2**20 == pytest.approx(35, rel=0.03)
