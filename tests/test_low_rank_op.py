"""The fused operation against its plain twin and against finite differences."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.adapter import LowRank
from rankwise.dropout import Dropout
from rankwise.low_rank_op import Factors, low_rank_branch, low_rank_linear
from rankwise.methods.lora import LoRALayer

D_IN, D_OUT, R = 5, 4, 2
VECTORS = list(product([False, True], repeat=3))  # with a gate, with an out, with a bias
each_form = pytest.mark.parametrize(("gate", "out", "bias"), VECTORS)


def problem(gate: bool, out: bool, bias: bool, rows: tuple[int, ...] = (2, 3)) -> tuple[Tensor, ...]:
    """x, W, b and the four factors, float64."""
    shapes = [(*rows, D_IN), (D_OUT, D_IN), (D_OUT,), (D_OUT, R), (R, D_IN), (R,), (D_OUT,)]
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    keep = [True, True, bias, True, True, gate, out]
    return tuple(t if k else None for t, k in zip(tensors, keep, strict=True))


def fused(x, W, b, *factors):
    return low_rank_linear(x, W, b, Factors(*factors, scale=1.5))


def plain(x, W, b, *factors):
    return F.linear(x, W, b) + low_rank_branch(x, Factors(*factors, scale=1.5))


@each_form
def test_equals_the_plain_path(gate, out, bias):
    tensors = problem(gate, out, bias)
    torch.testing.assert_close(fused(*tensors), plain(*tensors))


@each_form
@pytest.mark.parametrize("needs", [s for s in product([False, True], repeat=5) if any(s)], ids=str)
def test_gradients_equal_those_of_the_plain_path(gate, out, bias, needs):
    """Whichever of x, up, down, gate and out need one, and none that is not needed is made."""
    x, W, b, *factors = problem(gate, out, bias)
    inputs = [x, *factors]
    wanted = [t for t, n in zip(inputs, needs, strict=True) if n and t is not None]
    if not wanted:
        return
    for t in wanted:
        t.requires_grad_(True)
    g = torch.randn(2, 3, D_OUT, dtype=torch.float64)
    ours = torch.autograd.grad(fused(x, W, b, *factors), wanted, g)
    theirs = torch.autograd.grad(plain(x, W, b, *factors), wanted, g)
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, e)


@each_form
def test_gradcheck(gate, out, bias):
    tensors = problem(gate, out, bias)
    for t in (tensors[0], *tensors[3:]):
        if t is not None:
            t.requires_grad_(True)
    assert torch.autograd.gradcheck(fused, tensors)


def test_bias_may_train():
    x, W, b, *factors = problem(False, False, True)
    b.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda b: fused(x, W, b, *factors), (b,))


@each_form
@pytest.mark.parametrize("rows", [(2, 3), (2, 1)], ids=["more rows than ranks", "no more"])
def test_dropout_equals_the_plain_path_on_the_dropped_input(gate, out, bias, rows):
    x, W, b, *factors = problem(gate, out, bias, rows)
    dropout = Dropout(0.4, seed=5)
    leaves = [t.requires_grad_(True) for t in (x, *factors) if t is not None]
    g = torch.randn(*rows, D_OUT, dtype=torch.float64)
    y = low_rank_linear(x, W, b, Factors(*factors, scale=1.5), dropout)
    dropped = x * dropout.mask(x) * dropout.survivors_scale
    expected = F.linear(x, W, b) + low_rank_branch(dropped, Factors(*factors, scale=1.5))
    torch.testing.assert_close(y, expected)
    ours, theirs = torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g)
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, e)


def test_dropout_stores_neither_a_mask_nor_a_copy():
    x, made = torch.randn(64, 5), layer(nn.Linear(5, 4), dropout=0.5)
    kept: set[int] = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.add(t.untyped_storage().data_ptr()), lambda _: None):
        made(x)
    own = {t.untyped_storage().data_ptr() for t in (x, made.A, made.B, made.base.weight)}
    assert len(kept - own) == 1  # h


@pytest.mark.parametrize("rows", [(), (1,), (7,), (0,), (2, 0), (2, 3, 4)], ids=str)
def test_any_leading_shape(rows):
    tensors = problem(True, True, True, rows)
    for t in (tensors[0], *tensors[3:]):
        t.requires_grad_(True)
    y = fused(*tensors)
    assert y.shape == (*rows, D_OUT)
    torch.testing.assert_close(y, plain(*tensors))
    y.sum().backward()
    assert tensors[0].grad.shape == tensors[0].shape


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_zero_update_is_the_base_bit_for_bit_without_contiguity_too(bias, requires_grad):
    x, W = torch.randn(2, 32, 7).transpose(1, 2).requires_grad_(requires_grad), torch.randn(48, 32)
    b = torch.randn(48) if bias else None
    y = low_rank_linear(x, W, b, Factors(torch.zeros(48, 2), torch.randn(2, 32)))
    assert torch.equal(y, F.linear(x, W, b))


def test_delta_is_what_the_branch_multiplies_with():
    x, _, _, *factors = problem(True, True, False)
    delta = Factors(*factors, scale=1.5).delta()
    assert delta.dtype == torch.float32
    torch.testing.assert_close(
        low_rank_branch(x, Factors(*factors, scale=1.5)), x @ delta.double().T, rtol=1e-5, atol=1e-6
    )


# ------------------------------------------------------------------ when it is taken


def layer(base: nn.Module, dropout: float = 0.0) -> LowRank:
    made = LoRALayer(base.requires_grad_(False), 2, 1.0, dropout, None)
    nn.init.normal_(made.B)
    return made


class Other(nn.Linear):
    pass


def hooked(base: nn.Linear) -> nn.Linear:
    base.register_forward_hook(lambda *_: None)
    return base


def patched(base: nn.Linear) -> nn.Linear:
    inner = base.forward
    base.forward = lambda x: inner(x) * 2  # as accelerate does for weights that lie elsewhere
    return base


def trainable(made: LowRank) -> LowRank:
    made.base.requires_grad_(True)
    return made


@pytest.mark.parametrize(
    ("make", "fuses"),
    [
        (lambda: layer(nn.Linear(5, 4)), True),
        (lambda: layer(nn.Linear(5, 4), dropout=0.5).eval(), True),
        (lambda: layer(nn.Linear(5, 4), dropout=0.5), True),
        (lambda: layer(Other(5, 4)), False),
        (lambda: layer(hooked(nn.Linear(5, 4))), False),
        (lambda: layer(patched(nn.Linear(5, 4))), False),
        (lambda: layer(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))), False),
        (lambda: trainable(layer(nn.Linear(5, 4))), False),
    ],
)
def test_only_a_plain_frozen_linear_is_fused(make, fuses, monkeypatch):
    made, x = make(), torch.randn(3, 5)
    expected = made.base(x) + low_rank_branch(x, made.factors())
    if not made.dropout or not made.training:
        torch.testing.assert_close(made(x), expected)
    monkeypatch.setattr("rankwise.adapter.low_rank_linear", lambda *_: "fused")
    assert (made(x) == "fused" if isinstance(made(x), str) else False) == fuses


def test_a_hook_on_the_base_sees_every_call():
    seen = []
    made = layer(nn.Linear(5, 4))
    made.base.register_forward_hook(lambda module, args, y: seen.append(y))
    made(torch.randn(3, 5))
    assert len(seen) == 1


@pytest.mark.parametrize("form", VECTORS)
def test_autocast_works_in_bfloat16_forward_and_backward(form):
    gate, out, bias = form
    tensors = [None if t is None else t.float() for t in problem(gate, out, bias, (16,))]
    leaves = [t.requires_grad_(True) for t in (tensors[0], *tensors[3:]) if t is not None]
    g = torch.randn(16, D_OUT)
    exact = torch.autograd.grad(plain(*tensors), leaves, g)
    with torch.autocast("cpu", torch.bfloat16):
        y = fused(*tensors)
    assert y.dtype == torch.bfloat16
    near = torch.autograd.grad(y, leaves, g.bfloat16())
    for a, e in zip(near, exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - e).norm() <= 0.05 * e.norm()
