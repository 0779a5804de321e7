"""Weights in 8-bit floats with scales beside them, as transformers loads DeepSeek's and Qwen's: a packed kind. Its
kernels need a GPU, so that nothing is computed with it here."""

import pytest
import torch
from torch import nn
from transformers.integrations.finegrained_fp8 import FP8Linear, _dequantize_fp8_weight

import rankwise as rw
from rankwise.base_layers import dtype_of, is_packed, kind_of, sizes, unpacked, weight


def layer(block_size: tuple[int, int] | None, bias: bool = False) -> FP8Linear:
    torch.manual_seed(0)
    made = FP8Linear(24, 20, block_size=block_size, has_bias=bias)
    with torch.no_grad():
        made.weight.copy_(torch.randn(20, 24))
        made.weight_scale_inv.copy_(torch.rand(made.weight_scale_inv.shape) + 0.5)
        if bias:
            made.bias.copy_(torch.randn(20))
    return made


@pytest.mark.parametrize("block_size", [None, (8, 8), (4, 24), (16, 10)], ids=str)
def test_the_weight_is_what_it_stands_for(block_size: tuple[int, int] | None):
    base = layer(block_size, bias=True)
    assert is_packed(base) and sizes(base) == (24, 20) and dtype_of(base) is None
    plain = unpacked(base)
    assert torch.equal(plain.weight, weight(base)) and torch.equal(plain.bias, base.bias)
    if block_size is None:
        expected = base.weight.float() * base.weight_scale_inv
    else:
        expected = _dequantize_fp8_weight(base.weight, base.weight_scale_inv, block_size, torch.float32)
    torch.testing.assert_close(plain.weight, expected)


def test_it_is_adapted_as_a_packed_layer():
    model = nn.Sequential(layer((8, 8)), nn.Linear(20, 4))
    adaptation = rw.adapt(model, rw.VeRA(rank=6))
    assert {p.dtype for p in adaptation.parameters()} == {torch.float32}
    assert adaptation.adapters["0"].pair.A.dtype == torch.float32
    with pytest.raises(rw.StateError, match="1 of 2 layers have a quantised weight, 0 first"):
        adaptation.merge()
    adaptation.undo()
    with pytest.raises(rw.TargetError, match="quantised"):
        rw.adapt(model, rw.FullFineTuning())


def test_an_8_bit_float_of_nobody_s_is_no_linear_layer():
    linear = nn.Linear(8, 8)
    linear.weight = nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
    assert kind_of(linear) is None
