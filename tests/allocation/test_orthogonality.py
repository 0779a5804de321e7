"""The closed form, against automatic differentiation of the formula itself."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rankwise.allocation.gram import add_products_, grams
from rankwise.allocation.orthogonality import Penalty
from rankwise.allocation.orthogonality import orthogonality as of_grams

each_penalty = pytest.mark.parametrize("penalty", ["mean_norm", "sum_of_squares"])


def literal(columns: list[Tensor], penalty: str) -> Tensor:
    total = torch.zeros((), dtype=columns[0].dtype)
    for C in columns:
        norm = torch.linalg.norm(C.T @ C - torch.eye(C.shape[1], dtype=C.dtype))
        total = total + (norm / len(columns) if penalty == "mean_norm" else norm**2)
    return total


def orthogonality(columns: list[Tensor], penalty: Penalty) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients, of matrices (d, r)."""
    rows = [C.T for C in columns]
    value, multipliers = of_grams(grams(rows), penalty)
    gradients = [torch.zeros_like(C) for C in columns]
    add_products_([g.T for g in gradients], multipliers, rows)
    return value, gradients


@each_penalty
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=8), seed=st.integers(0, 99)
)
def test_value_and_gradient(penalty: str, shapes: list[tuple[int, int]], seed: int):
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_(True) for s in shapes]
    expected = literal(columns, penalty)
    gradients = torch.autograd.grad(expected, columns)
    value, ours = orthogonality([C.detach() for C in columns], penalty)
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    for a, e in zip(ours, gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-6)  # eye is exact, norms are of float64


@each_penalty
def test_orthonormal_columns_are_at_rest(penalty: str):
    value, (gradient, other) = orthogonality([torch.eye(5)[:, :3], torch.eye(4)], penalty)
    assert value == 0 and not gradient.any() and not other.any()


@each_penalty
def test_a_layer_without_ranks_counts_for_nothing(penalty: str):
    value, (empty, gradient) = orthogonality([torch.empty(5, 0), torch.eye(4)[:, :2] * 2], penalty)
    assert empty.shape == (5, 0) and torch.isfinite(value) and torch.isfinite(gradient).all()


@pytest.mark.parametrize(("d", "expected"), [(768, 2.404), (3072, 0.839)])
def test_expectations_at_the_start(d: int, expected: float):
    """E‖PᵀP − I‖_F for P ~ N(0, 0.02²) and r = 12, and its root mean square in closed form."""
    r, s = 12, 0.02
    generator = torch.Generator().manual_seed(0)
    norms = []
    for _ in range(100):
        P = torch.randn(d, r, generator=generator) * s
        norms.append(orthogonality([P], "mean_norm")[0].item())
    sample = torch.tensor(norms, dtype=torch.float64)
    error = 4 * sample.std().item() / math.sqrt(len(sample))
    assert abs(sample.mean().item() - expected) < error + 5e-4  # the published figures have three decimals
    rms = math.sqrt(r * (1 - d * s**2) ** 2 + 2 * r * d * s**4 + r * (r - 1) * d * s**4)
    assert abs(sample.square().mean().sqrt().item() - rms) < error


def test_elsewhere_than_on_a_cpu_matrices_of_one_shape_are_stacked():
    """On the meta device, which has no values, but refuses shapes that do not fit."""
    with torch.device("meta"):
        rows = [torch.empty(3, 7), torch.empty(2, 5), torch.empty(3, 7)]
        targets = [torch.empty(3, 7), torch.empty(1, 5), torch.empty(7, 3).T]
        multipliers = [torch.empty(3, 3), torch.empty(1, 2), torch.empty(3, 3)]
    assert [tuple(G.shape) for G in grams(rows)] == [(3, 3), (2, 2), (3, 3)]
    add_products_(targets, multipliers, rows)
