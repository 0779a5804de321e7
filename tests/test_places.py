"""The table of places against the models that transformers builds: every name in it is there."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

import rankwise as rw
from contract.models import BY_NAME
from rankwise.places import STACKS, blocks_in


def small(model_type: str) -> Any:
    """The family's default configuration, on the meta device, with two blocks."""
    config = AutoConfig.for_model(model_type)
    layers = {"encoder_layers": 2, "decoder_layers": 2} if model_type == "bart" else {config_name(config): 2}
    for name, number in layers.items():
        setattr(config, name, number)
    if "layer_types" in config.to_dict() and config.layer_types:
        config.layer_types = config.layer_types[:2]
    with torch.device("meta"):
        return AutoModel.from_config(config)


def config_name(config: Any) -> str:
    return config.attribute_map.get("num_hidden_layers", "num_hidden_layers")


@pytest.mark.parametrize("model_type", STACKS)
def test_every_place_is_in_the_model(model_type: str) -> None:
    model = small(model_type)
    for stack in STACKS[model_type]:
        blocks = blocks_in(model, stack)
        assert len(blocks) == 2
        reader = model.get_submodule(stack.reads)
        assert isinstance(reader.get_input_embeddings(), nn.Embedding)
        assert stack.pooler is None or reader.get_submodule(stack.pooler) is not None
        for block in blocks:
            assert all(block.get_submodule(name) is not None for name in stack.sublayers)
            if stack.norm_after is not None:
                assert type(block.get_submodule(stack.norm_after)).__name__.endswith("LayerNorm")
    assert int(model.config.hidden_size) == next(blocks[0].parameters()).shape[-1]
    assert int(model.config.max_position_embeddings) > 0


@pytest.mark.parametrize("method", [rw.HoulsbyAdapter(), rw.TopBlocks(), rw.PrefixEmbedding()], ids=lambda m: m.name)
def test_an_unknown_family_is_refused_with_the_known_ones(method: Any) -> None:
    model = BY_NAME["t5"].build()
    with pytest.raises(
        rw.TargetError, match=f"{method.name} does not know the blocks of a t5 model.*'gpt2', 'granite'"
    ):
        rw.adapt(model, method)


@pytest.mark.parametrize("method", [rw.LinAdapter(), rw.AdapterDrop(), rw.PrefixLayer()], ids=lambda m: m.name)
def test_a_model_that_is_none_of_transformers_is_refused(method: Any) -> None:
    with pytest.raises(rw.TargetError, match="does not know the blocks of a custom model"):
        rw.adapt(nn.Sequential(nn.Linear(4, 4)), method)


def test_a_model_without_biases_is_told_so() -> None:
    with pytest.raises(rw.TargetError, match="the backbone of this llama model has none"):
        rw.adapt(BY_NAME["llama-gqa"].build(), rw.BitFit())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (rw.TopBlocks(blocks=3), "blocks=3 is more than the 2"),
        (rw.AdapterDrop(drop=2), "drop=2 would leave none of the model's 2 blocks"),
        (rw.LinAdapter(size=33), "size=33 is wider than the 32"),
        (rw.PrefixLayer(prefix=39, infix=1), "40 prefix and infix vectors leave no room for tokens"),
    ],
)
def test_more_than_there_is_room_for_is_refused(method: Any, message: str) -> None:
    model = BY_NAME["bert"].build()
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(rw.TargetError, match=message):
        rw.adapt(model, method)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_a_name_that_the_model_has_already_is_not_taken() -> None:
    model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    model.encoder.layer[0].adapter_bottleneck = nn.Identity()
    with pytest.raises(rw.TargetError, match=r"has a 'encoder\.layer\.0\.adapter_bottleneck' of its own"):
        rw.adapt(model, rw.LinAdapter())
    assert all(p.requires_grad for p in model.parameters())
