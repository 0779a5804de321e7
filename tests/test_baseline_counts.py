"""Parameter counts of the papers' tables, from configurations alone: the models are on the meta device."""

from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    BartConfig,
    DebertaV2Config,
    GPT2Config,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

import rankwise as rw
from rankwise.adapter import Method
from rankwise.base_layers import count

CONFIGS: dict[str, PretrainedConfig] = {
    "deberta-v3-base": DebertaV2Config(
        vocab_size=128100,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
    ),
    "roberta-base": RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    "roberta-large": RobertaConfig(
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    ),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt3": GPT2Config(n_embd=12288, n_layer=96, n_head=96, n_positions=2048),
    "bart-large": BartConfig(),
}


def build(name: str) -> PreTrainedModel:
    without_pooler = {"add_pooling_layer": False} if name == "roberta-base" else {}
    with torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(CONFIGS[name], **without_pooler)
    return model


@cache
def total(name: str) -> int:
    return count(build(name))


def bottlenecks(cls: Any, size: int) -> Method:
    method: Method = cls(size=size, also_train=())
    return method


ROWS: list[tuple[str, Method, int]] = [
    ("deberta-v3-base", rw.FullFineTuning(also_train=()), 183_831_552),
    ("deberta-v3-base", rw.BitFit(also_train=()), 102_912),
    ("deberta-v3-base", bottlenecks(rw.HoulsbyAdapter, 16), 608_640),
    ("deberta-v3-base", bottlenecks(rw.HoulsbyAdapter, 8), 313_536),
    ("deberta-v3-base", bottlenecks(rw.PfeifferAdapter, 32), 599_424),
    ("deberta-v3-base", bottlenecks(rw.PfeifferAdapter, 16), 304_320),
    ("roberta-base", rw.BitFit(also_train=()), 102_144),
    ("roberta-base", rw.AdapterDrop(size=48, drop=0, also_train=()), 894_528),
    ("roberta-base", rw.AdapterDrop(size=48, drop=8, also_train=()), 298_176),
    ("roberta-large", bottlenecks(rw.PfeifferAdapter, 16), 811_392),
    ("roberta-large", bottlenecks(rw.HoulsbyAdapter, 8), 835_968),
    ("roberta-large", bottlenecks(rw.PfeifferAdapter, 64), 3_171_840),
    ("roberta-large", bottlenecks(rw.HoulsbyAdapter, 64), 6_343_680),
    ("gpt2-medium", rw.TopBlocks(blocks=2, also_train=()), 25_192_448),
    ("gpt2-medium", rw.TopBlocks(blocks=2, also_train=["ln_f"]), 25_192_448 + 2 * 1024),
    ("gpt2-medium", rw.FullFineTuning(also_train=()), 354_823_168),
    ("gpt2-medium", bottlenecks(rw.LinAdapter, 6), 368_784),
    ("gpt2-medium", bottlenecks(rw.LinAdapter, 224), 11_089_152),
    ("gpt2-large", rw.FullFineTuning(also_train=()), 774_030_080),
    ("gpt2-large", bottlenecks(rw.LinAdapter, 8), 875_808),
    ("gpt2-large", bottlenecks(rw.LinAdapter, 248), 23_002_848),
    ("gpt3", bottlenecks(rw.HoulsbyAdapter, 1), 7_078_080),
    ("gpt3", bottlenecks(rw.HoulsbyAdapter, 4), 21_234_432),
    ("gpt3", bottlenecks(rw.HoulsbyAdapter, 8), 40_109_568),
    ("gpt3", bottlenecks(rw.HoulsbyAdapter, 16), 77_859_840),
    ("gpt3", bottlenecks(rw.HoulsbyAdapter, 64), 304_361_472),
    ("gpt3", rw.PrefixEmbedding(prefix=256, infix=8, also_train=()), 3_244_032),
    ("gpt3", rw.PrefixLayer(prefix=8, infix=8, also_train=()), 18_874_368),
    ("gpt3", rw.BitFit(also_train=()), 12_988_416),
    ("bart-large", rw.FullFineTuning(also_train=()), 406_291_456),
]


@pytest.mark.parametrize(("name", "method", "expected"), ROWS, ids=lambda part: getattr(part, "name", str(part)))
def test_counts_are_those_of_the_tables(name: str, method: Method, expected: int) -> None:
    model = build(name)
    adaptation = rw.adapt(model, method)
    assert adaptation.count() == expected
    assert all(p.is_meta for p in adaptation.parameters())
    assert count(model) - total(name) in (0, expected)
    with adaptation.disabled():
        pass
    adaptation.undo()
    assert count(model) == total(name)
