"""Which layers are adapted and what trains beside them; and what the errors say."""

import re

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

import rankwise as rw
from contract.models import ARCHITECTURES, BY_NAME, ENCODER, Architecture, _built
from contract.runs import outputs, train
from rankwise.architectures import FAMILIES, blocks_of, role_of
from rankwise.base_layers import kind_of
from rankwise.targets import ModelView, find_sites, trained_modules

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda row: row.name)


def matched(model: nn.Module, targets, exclude=None, also_train="auto") -> list[str]:
    view = ModelView(model)
    return [s.name for s in find_sites(view, targets, exclude, trained_modules(view, also_train))]


# ------------------------------------------------------------------ every architecture


@each_architecture
def test_the_role_of_every_linear(architecture: Architecture):
    view = ModelView(architecture.build())
    for name in view.linears():
        if not view.in_backbone(name):
            assert name in architecture.untouched
            continue
        expected = [role for role, endings in architecture.roles.items() if name.endswith(endings)]
        # "attention.output.dense" ends as the feed-forward's "output.dense" does: the longer ending is meant
        assert view.role(name) == expected[0], name
    roles = [view.role(n) for n in view.linears() if view.in_backbone(n)]
    assert roles.count("attention") + roles.count("ffn") == architecture.linears
    for endings in architecture.roles.values():
        assert all(any(n.endswith(e) for n in view.linears()) for e in endings)


@each_architecture
def test_keywords(architecture: Architecture):
    model = architecture.build()
    attention, ffn, everything = (matched(model, k) for k in ("attention", "ffn", "all-linear"))
    assert len(attention) + len(ffn) == architecture.linears and not set(attention) & set(ffn)
    linears = [n for n, m in model.named_modules() if kind_of(m) is not None]
    assert everything == [n for n in linears if n not in architecture.untouched]
    assert set(attention) | set(ffn) == {n for n in everything if not n.endswith("pooler.dense")}


@each_architecture
def test_auto_trains_exactly_the_head(architecture: Architecture):
    model = architecture.build()
    assert trained_modules(ModelView(model), "auto") == list(architecture.head)
    expected = [n for n, _ in model.named_parameters() if n.startswith(tuple(h + "." for h in architecture.head))]
    adaptation = rw.adapt(model, rw.LoRA(rank=2))
    assert list(adaptation.trained) == expected
    adapters = {id(p) for a in adaptation.adapters.values() for p in a.parameters(recurse=False)}
    others = {n for n, p in model.named_parameters() if p.requires_grad and id(p) not in adapters}
    assert others == set(expected)


@each_architecture
def test_structure_finds_the_same_roles_without_the_table(architecture: Architecture):
    """For a family that no table knows."""
    view = ModelView(architecture.build())
    known = {n: view.role(n) for n in view.linears() if view.in_backbone(n)}
    view.model_type = "unheard-of"
    if architecture.name == "deberta-v2":  # its attention module is called attention as BERT's is
        assert {n: view.role(n) for n in known} == known
    assert {n: view.role(n) for n in known} == known


ROUTERS = {"qwen2_moe": "shared_expert_gate"}  # which nobody adapts
FUSED_EXPERTS = ("mixtral", "qwen3_moe")  # no linears, and no other feed-forward
BLOCKS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers", "n_layer")
VARIANTS = [*((name, {}) for name in FAMILIES), ("longt5", {"encoder_attention_type": "transient-global"})]


@pytest.mark.parametrize(("model_type", "settings"), VARIANTS, ids=str)
def test_the_table_knows_every_layer_of_a_block(model_type: str, settings: dict[str, str]):
    """As transformers builds the family, two blocks of it, without weights."""
    config = AutoConfig.for_model(model_type, **settings)
    for name in BLOCKS:
        if name in config.to_dict():
            setattr(config, name, 2)
    with torch.device("meta"):
        view = ModelView(AutoModel.from_config(config))
    roles = {n: (view.role(n), role_of(n, view.model, "of none")) for n in view.linears()}
    wrong = {n: pair for n, pair in roles.items() if len(set(pair)) > 1}
    assert {n for n in wrong if not n.endswith(ROUTERS.get(model_type, "none"))} == set()
    expected = {"attention"} if model_type in FUSED_EXPERTS else {"attention", "ffn"}
    assert expected <= {role for role, _ in roles.values()}


def test_masked_language_head_is_neither_adapted_nor_trained():
    model = BertForMaskedLM(ENCODER.build().config)
    assert trained_modules(ModelView(model), "auto") == []
    assert all(n.startswith("bert.encoder.layer.") for n in matched(model, "all-linear"))


def test_a_bare_backbone_has_no_head():
    model = BertModel(ENCODER.build().config, add_pooling_layer=False)
    assert trained_modules(ModelView(model), "auto") == []
    assert len(matched(model, "all-linear")) == 12


def test_a_fresh_pooler_is_trained_not_adapted(tmp_path):
    BertForMaskedLM(ENCODER.build().config).save_pretrained(tmp_path)  # has neither pooler nor classifier
    model = BertForSequenceClassification.from_pretrained(tmp_path)
    assert trained_modules(ModelView(model), "auto") == ["classifier", "bert.pooler.dense"]
    assert "bert.pooler.dense" not in matched(model, "all-linear")
    adaptation = rw.adapt(model, rw.LoRA(rank=2))
    assert [n for n, p in model.named_parameters() if p.requires_grad and "pooler" in n] == [
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    ]
    assert "bert.pooler.dense.weight" in adaptation.trained


def test_a_loaded_pooler_is_adapted(tmp_path):
    ENCODER.build().save_pretrained(tmp_path)
    model = BertForSequenceClassification.from_pretrained(tmp_path)
    assert trained_modules(ModelView(model), "auto") == ["classifier"]
    assert "bert.pooler.dense" in matched(model, "all-linear")


# ------------------------------------------------------------------ forms


def test_suffixes_regexes_and_exclude():
    model = ENCODER.build()
    layer0 = "bert.encoder.layer.0."
    assert len(matched(model, ["query", "value"])) == 4
    assert matched(model, ["value", "query"]) == matched(model, ["query", "value"])  # in the order of the model
    assert matched(model, [f"{layer0}attention.self.key"]) == [f"{layer0}attention.self.key"]
    assert matched(model, r".*layer\.0\..*(query|key)") == [f"{layer0}attention.self.{n}" for n in ("query", "key")]
    assert matched(model, "attention", ["dense"]) == matched(model, ["query", "key", "value"])
    assert matched(model, "all-linear", "attention") == [*matched(model, "ffn"), "bert.pooler.dense"]
    assert len(matched(model, ["dense"])) == 7  # two of attention, four of the feed-forward, the pooler
    assert matched(model, ["self.query"]) == matched(model, ["query"])


def test_a_suffix_is_whole_components():
    with pytest.raises(rw.TargetError):
        matched(ENCODER.build(), ["uery"])


def test_blocks():
    model = BY_NAME["gpt2"].build()
    first = "transformer.h.0.attn.c_attn"
    assert matched(model, ["c_attn[q, v]"])[:2] == [f"{first}[q]", f"{first}[v]"]
    assert matched(model, ["c_attn[q,k,v]"], ["c_attn[k]"])[:2] == [f"{first}[q]", f"{first}[v]"]
    assert not [n for n in matched(model, ["c_attn[q]", "c_fc"], [first]) if first in n]
    assert blocks_of(first, "gpt2", model.config, 96) == {"q": (0, 32), "k": (32, 64), "v": (64, 96)}


def test_a_layer_whole_and_in_blocks_is_refused():
    with pytest.raises(rw.TargetError, match=re.escape("c_attn[q]")):
        matched(BY_NAME["gpt2"].build(), ["c_attn", "c_attn[q]"])


def test_blocks_of_cross_attention():
    """There c_attn makes k and v, of the other stack's states; q is a layer of its own."""
    config = GPT2Config(vocab_size=30, n_embd=24, n_layer=1, n_head=2, add_cross_attention=True)
    model = GPT2LMHeadModel(config)
    sites = matched(model, ["crossattention.c_attn[k,v]"])
    assert sites == ["transformer.h.0.crossattention.c_attn[k]", "transformer.h.0.crossattention.c_attn[v]"]
    assert blocks_of(sites[0].partition("[")[0], "gpt2", config, 48) == {"k": (0, 24), "v": (24, 48)}
    assert blocks_of("transformer.h.0.attn.c_attn", "gpt2", config, 72)["v"] == (48, 72)
    with pytest.raises(rw.TargetError, match=r"block 'q' of transformer.h.0.crossattention.c_attn"):
        rw.adapt(model, rw.LoRA(rank=2, targets=["crossattention.c_attn[q]"]))


def test_blocks_of_grouped_query_attention():
    config = BY_NAME["llama-gqa"].build().config
    assert blocks_of("layers.0.self_attn.qkv_proj", "phi3", config, 64) == {"q": (0, 32), "k": (32, 48), "v": (48, 64)}


def test_a_model_of_ones_own():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    adaptation = rw.adapt(model, rw.LoRA(rank=2))
    assert list(adaptation.adapters) == ["0", "2"] and not adaptation.trained


# ------------------------------------------------------------------ also_train


def test_also_train_takes_modules_and_parameters():
    model = ENCODER.build()
    names = trained_modules(ModelView(model), ["classifier", "word_embeddings"])
    assert names == ["classifier", "bert.embeddings.word_embeddings"]
    assert trained_modules(ModelView(model), []) == []
    adaptation = rw.adapt(model, rw.LoRA(rank=2, also_train=["classifier.bias", "LayerNorm"]))
    assert len(adaptation.trained) == 1 + 2 * 5


def test_a_trained_linear_is_not_adapted():
    assert "bert.pooler.dense" not in matched(ENCODER.build(), "all-linear", also_train=["pooler"])


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_bias_inside_an_adapted_layer_trains(name: str, tmp_path):
    """Fused or not: its gradient arrives, it is saved and comes back."""
    row = BY_NAME[name]
    suffix = {"bert": "query.bias", "gpt2": "c_attn.bias"}[name]
    adaptation = rw.adapt(row.build(), rw.LoRA(rank=2, also_train=[suffix]))
    assert len(adaptation.trained) == 2 and all(n.endswith(suffix) for n in adaptation.trained)
    before = [p.clone() for p in adaptation.trained.values()]
    train(adaptation, row.batch(), steps=2)
    assert not any(torch.equal(p, b) for p, b in zip(adaptation.trained.values(), before, strict=True))
    adaptation.save(tmp_path / "adapter")
    loaded = rw.load(row.build(), tmp_path / "adapter")
    assert torch.equal(outputs(loaded.model, row.batch()), outputs(adaptation.model, row.batch()))


def test_a_tied_head_that_is_named_trains(tmp_path):
    row = BY_NAME["qwen2"]
    adaptation = rw.adapt(row.build(), rw.LoRA(rank=2, also_train=["lm_head", "embed_tokens"]))
    assert len(adaptation.trained) == 1
    train(adaptation, row.batch(), steps=2)
    adaptation.save(tmp_path / "adapter")
    loaded = rw.load(row.build(), tmp_path / "adapter")
    assert torch.equal(outputs(loaded.model, row.batch()), outputs(adaptation.model, row.batch()))


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("targets", "exclude", "says"),
    [
        (["nowhere"], None, ["targets='nowhere'", "matches no linear", "'query'", "'dense'", "all-linear", "inspect"]),
        (["LayerNorm"], None, ["targets='LayerNorm'", "only LayerNorm, which cannot be adapted"]),
        ("query", None, ["targets='query'", "whole names", "['query']"]),  # a string is one regular expression
        (r".*\.nowhere", None, ["matches no linear layer"]),
        (["query", "q_proj"], None, ["targets='q_proj'"]),
        (["query"], ["query"], ["exclude=['query'] leaves none", "targets=['query']"]),
        (["query"], ["nowhere"], ["exclude='nowhere' matches no linear"]),
        (["query[q]"], None, ["block 'q'", "not known to be a fused weight"]),
    ],
)
def test_errors_say_what_the_model_has(targets, exclude, says):
    with pytest.raises(rw.TargetError) as raised:
        matched(ENCODER.build(), targets, exclude)
    for part in says:
        assert part in str(raised.value), str(raised.value)


def test_unknown_block():
    with pytest.raises(rw.TargetError, match=r"block 'x' of transformer.h.0.attn.c_attn .* \['q', 'k', 'v'\]"):
        matched(BY_NAME["gpt2"].build(), ["c_attn[q,x]"])


def test_also_train_that_names_nothing():
    with pytest.raises(rw.TargetError, match=r"also_train='head' is no module .*\['bert', 'dropout', 'classifier'\]"):
        rw.adapt(ENCODER.build(), rw.LoRA(also_train=["head"]))


def test_rank_above_the_matrix():
    with pytest.raises(rw.TargetError, match=r"rank=33 is above the largest possible rank 32 of .*query \(32 × 32\)"):
        rw.adapt(ENCODER.build(), rw.LoRA(rank=33))
    with pytest.raises(rw.TargetError, match=r"rank=17 .* 16 of model.layers.0.self_attn.k_proj \(16 × 32\)"):
        rw.adapt(BY_NAME["llama-gqa"].build(), rw.LoRA(rank=17, targets="attention"))
    with pytest.raises(rw.TargetError, match="rank_pattern names 'nowhere'"):
        rw.adapt(ENCODER.build(), rw.LoRA(rank_pattern={"nowhere": 2}))
    with pytest.raises(rw.TargetError, match="alpha_pattern names 'nowhere'"):
        rw.adapt(ENCODER.build(), rw.LoRA(alpha_pattern={"nowhere": 2}))


def test_tied_weights_are_refused():
    with pytest.raises(rw.TargetError, match=r"lm_head shares its weight with model.embed_tokens.*exclude"):
        rw.adapt(BY_NAME["qwen2"].build(), rw.LoRA(targets=["lm_head", "q_proj"]))


class Sharing(nn.Module):
    """One linear under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first


def test_a_lone_linear_has_no_place_to_be_swapped_in():
    model = nn.Linear(4, 4)
    with pytest.raises(rw.TargetError, match="matches no linear layer"):
        rw.adapt(model, rw.LoRA(rank=2))
    assert all(p.requires_grad for p in model.parameters())


def test_nothing_adaptable_at_all():
    with pytest.raises(rw.TargetError):
        rw.adapt(nn.Sequential(nn.ReLU()), rw.LoRA(rank=2))


def test_a_head_size_of_its_own_is_no_trouble():
    """Names decide, not shapes: here the feed-forward is square and attention is not."""
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        vocab_size=50,
        max_position_embeddings=20,
    )
    model = _built(BertForSequenceClassification, config)()
    assert [n.removeprefix("bert.encoder.layer.0.") for n in matched(model, "ffn")] == [
        "intermediate.dense",
        "output.dense",
    ]
