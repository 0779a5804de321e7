"""The places of the bottleneck adapters, against blocks written out by hand from the models' own sub-modules."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rankwise as rw
from contract.models import BY_NAME
from rankwise.methods.bottleneck import Bottleneck
from rankwise.methods.lin import NormedAdapter

WIDTH = 32


def f(adapter: Bottleneck, x: Tensor, act: Any) -> Tensor:
    """U act(D x + b_D) + b_U, one row of x at a time."""
    D, b_D, U, b_U = adapter.down.weight, adapter.down.bias, adapter.up.weight, adapter.up.bias
    return torch.stack([torch.stack([U @ act(D @ token + b_D) + b_U for token in row]) for row in x])


def adapted(name: str, method: Any) -> tuple[Any, dict[str, Any]]:
    """The model, in evaluation mode, and its parts, with values far from the start."""
    model = BY_NAME[name].build().eval()
    adaptation = rw.adapt(model, method)
    torch.manual_seed(4)
    for part in adaptation.parts.values():
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model, dict(adaptation.parts)


def states(*lengths: int) -> Tensor:
    return torch.randn(2, *lengths, WIDTH, generator=torch.Generator().manual_seed(9))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


@pytest.fixture
def x() -> Tensor:
    return states(5)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_houlsby_in_a_block_that_normalises_last(x: Tensor) -> None:
    model, parts = adapted("bert", rw.HoulsbyAdapter(size=4))
    layer, path = model.bert.encoder.layer[1], "bert.encoder.layer.1"
    first, second = (parts[f"{path}.{at}.adapter_bottleneck"] for at in ("attention.output.dropout", "output.dropout"))
    with torch.no_grad():
        s = layer.attention.output.dense(layer.attention.self(x)[0])
        a = layer.attention.output.LayerNorm(s + f(first, s, gelu) + x)
        s = layer.output.dense(layer.intermediate(a))
        y = layer.output.LayerNorm(s + f(second, s, gelu) + a)
    assert len(parts) == 4
    close(layer(x), y)


@torch.no_grad()
def test_houlsby_in_mpnet(x: Tensor) -> None:
    model, parts = adapted("mpnet", rw.HoulsbyAdapter(size=4, activation="relu"))
    layer, path = model.mpnet.encoder.layer[0], "mpnet.encoder.layer.0"
    first, second = (parts[f"{path}.{at}.adapter_bottleneck"] for at in ("attention.dropout", "output.dropout"))
    s = layer.attention.attn(x)[0]
    a = layer.attention.LayerNorm(s + f(first, s, F.relu) + x)
    s = layer.output.dense(layer.intermediate(a))
    close(layer(x)[0], layer.output.LayerNorm(s + f(second, s, F.relu) + a))


@torch.no_grad()
def test_houlsby_in_gpt2(x: Tensor) -> None:
    model, parts = adapted("gpt2", rw.HoulsbyAdapter(size=4))
    block = model.transformer.h[1]
    places = ("attn.resid_dropout", "mlp.dropout")
    first, second = (parts[f"transformer.h.1.{at}.adapter_bottleneck"] for at in places)
    first.enabled = second.enabled = False
    s = block.attn(block.ln_1(x))[0]
    a = x + s + f(first, s, gelu)
    s = block.mlp(block.ln_2(a))
    y = a + s + f(second, s, gelu)
    first.enabled = second.enabled = True
    close(block(x), y)


@torch.no_grad()
def test_houlsby_in_bart_s_decoder(x: Tensor) -> None:
    """Three in a block: the cross-attention is a sub-layer too."""
    model, parts = adapted("bart", rw.HoulsbyAdapter(size=4))
    block, memory = model.model.decoder.layers[0], states(6)
    own = [parts[f"model.decoder.layers.0.{at}.adapter_bottleneck"] for at in ("self_attn", "encoder_attn", "fc2")]
    for part in own:
        part.enabled = False
    s = block.self_attn(x)[0]
    a = block.self_attn_layer_norm(s + f(own[0], s, gelu) + x)
    s = block.encoder_attn(a, key_value_states=memory)[0]
    b = block.encoder_attn_layer_norm(s + f(own[1], s, gelu) + a)
    s = block.fc2(block.activation_fn(block.fc1(b)))
    y = block.final_layer_norm(s + f(own[2], s, gelu) + b)
    for part in own:
        part.enabled = True
    assert len(parts) == 2 * 2 + 2 * 3
    close(block(x, encoder_hidden_states=memory), y)


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v2"])
def test_pfeiffer_uses_the_same_norm_twice(name: str, x: Tensor) -> None:
    model, parts = adapted(name, rw.PfeifferAdapter(size=4))
    output = model.base_model.encoder.layer[0].output
    part = next(part for part in parts.values() if output.LayerNorm._modules.get("adapter_bottleneck") is part)
    inner = states(5)[..., :1].expand(-1, -1, 48)
    res = output.dense(inner)
    norm = output.LayerNorm
    h = F.layer_norm(res + x, (WIDTH,), norm.weight, norm.bias, norm.eps)
    u = f(part, h, F.relu) + res
    close(output(inner, x), F.layer_norm(u + x, (WIDTH,), norm.weight, norm.bias, norm.eps))
    assert len(parts) == 2


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama-gqa"])
def test_pfeiffer_in_a_block_that_normalises_first(name: str) -> None:
    model, parts = adapted(name, rw.PfeifferAdapter(size=4))
    batch = BY_NAME[name].batch()
    lowest = next(iter(parts.values()))
    for part in parts.values():
        part.enabled = False
    before = model(**batch, output_hidden_states=True).hidden_states[1]
    lowest.enabled = True
    after = model(**batch, output_hidden_states=True).hidden_states[1]
    close(after, before + f(lowest, before, F.relu))


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama-gqa", "bart"])
def test_lin_stands_behind_the_block_with_a_norm_of_its_own(name: str) -> None:
    model, parts = adapted(name, rw.LinAdapter(size=4))
    batch = BY_NAME[name].batch()
    key = "encoder_hidden_states" if name == "bart" else "hidden_states"
    lowest = next(iter(parts.values()))
    assert isinstance(lowest, NormedAdapter)
    for part in parts.values():
        part.enabled = False
    y = model(**batch, output_hidden_states=True)[key][1]
    lowest.enabled = True
    mean, deviation = y.mean(-1, keepdim=True), (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    normed = (y - mean) / deviation * lowest.norm.weight + lowest.norm.bias
    close(model(**batch, output_hidden_states=True)[key][1], y + f(lowest, normed, F.relu))
    assert len(parts) == (4 if name == "bart" else 2)


# ------------------------------------------------------------------ AdapterDrop


def skipped(adaptation: rw.Adaptation) -> int:
    """How many adapters the last batch left out; they are the lowest ones."""
    left_out = [part.skipped for part in adaptation.parts.values() if isinstance(part, Bottleneck)]
    assert left_out == sorted(left_out, reverse=True)
    return sum(left_out)


def test_a_fixed_drop_leaves_the_lowest_blocks_without() -> None:
    adaptation = rw.adapt(BY_NAME["bert"].build(), rw.AdapterDrop(size=4, drop=1))
    assert list(adaptation.parts) == ["bert.encoder.layer.1.output.LayerNorm.adapter_bottleneck"]
    assert adaptation.count() - sum(p.numel() for p in adaptation.trained.values()) == 2 * WIDTH * 4 + 4 + WIDTH


def test_a_random_drop_is_drawn_for_each_batch_and_fixed_in_evaluation() -> None:
    model, batch = BY_NAME["bert"].build(), BY_NAME["bert"].batch()
    adaptation = rw.adapt(model, rw.AdapterDrop(size=4, drop=1, random=True, drop_in_evaluation=1))
    torch.manual_seed(0)
    model.train()
    drawn = []
    for _ in range(40):
        model(**batch)
        drawn.append(skipped(adaptation))
    assert set(drawn) == {0, 1}
    assert 8 < sum(drawn) < 32
    model.eval()
    model(**batch)
    assert skipped(adaptation) == 1


def test_what_is_dropped_does_nothing() -> None:
    """With a drop in evaluation the model is one that never had those adapters."""
    batch = BY_NAME["bert"].batch()
    method = rw.AdapterDrop(size=4, drop=1, random=True, drop_in_evaluation=1)
    model, parts = adapted("bert", method)
    other, others = adapted("bert", rw.AdapterDrop(size=4, drop=1))
    [name] = others
    others[name].load_state_dict(parts[name].state_dict())
    assert torch.equal(model(**batch).logits, other(**batch).logits)
