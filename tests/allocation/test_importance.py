"""The running means, element by element."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.allocation.importance import Importance, raw_signal

signals = st.lists(st.lists(st.floats(0, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=12)
decays = st.floats(0, 0.99)


@given(signals, decays, decays)
def test_running_means(steps: list[list[float]], beta1: float, beta2: float):
    importance = Importance([torch.empty(3), torch.empty(2)], beta1, beta2)
    mean, uncertainty = [0.0] * 3, [0.0] * 3
    for step in steps:
        importance.update([0], [torch.tensor(step)])
        for j, raw in enumerate(step):
            mean[j] = beta1 * mean[j] + (1 - beta1) * raw
            uncertainty[j] = beta2 * uncertainty[j] + (1 - beta2) * abs(raw - mean[j])
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(importance.mean[0], torch.tensor(mean), **tolerance)
    torch.testing.assert_close(importance.uncertainty[0], torch.tensor(uncertainty), **tolerance)
    assert torch.equal(importance.score(0), importance.mean[0] * importance.uncertainty[0])
    assert not importance.mean[1].any() and not importance.uncertainty[1].any()  # it was not told anything


@pytest.mark.parametrize(
    ("signal", "expected"),
    [("gradient", [3.0, 4.0, 0.0]), ("sensitivity", [6.0, 0.0, 0.0]), ("relative_gradient", [1.5, 0.0, 0.0])],
)
def test_raw_signals(signal, expected: list[float]):
    w, g = torch.tensor([-2.0, 0.0, 5.0]), torch.tensor([3.0, -4.0, 0.0])
    assert raw_signal(signal, [w], [g])[0].tolist() == expected
    assert raw_signal(signal, [], []) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("signal", ["gradient", "sensitivity", "relative_gradient"])
def test_the_state_is_float32_whatever_the_weights_are(signal, dtype: torch.dtype):
    w, g = torch.full((4,), 1e-4, dtype=dtype), torch.full((4,), 1e-5, dtype=dtype)
    (raw,) = raw_signal(signal, [w], [g])
    importance = Importance([w], 0.85, 0.85)
    importance.update([0], [raw])
    assert raw.dtype == importance.mean[0].dtype == importance.uncertainty[0].dtype == torch.float32
    assert importance.score(0).min() > 0  # in half precision it would have underflowed


def test_neither_signals_nor_weights_are_changed():
    w, g = torch.randn(4), torch.randn(4)
    kept = w.clone(), g.clone()
    for signal in ("gradient", "sensitivity", "relative_gradient"):
        raw = raw_signal(signal, [w], [g])
        before = raw[0].clone()
        Importance([w], 0.8, 0.8).update([0], raw)
        assert torch.equal(raw[0], before)
    assert torch.equal(w, kept[0]) and torch.equal(g, kept[1])


@given(st.lists(st.booleans(), min_size=4, max_size=4))
def test_keep_drops_the_other_ranks(kept: list[bool]):
    importance = Importance([torch.empty(3, 4), torch.empty(4)], 0.5, 0.5)
    importance.update([0, 1], [torch.rand(3, 4), torch.rand(4)])
    scores = importance.score(0), importance.score(1)
    ranks = torch.tensor(kept).nonzero().flatten()
    importance.keep(0, 1, ranks)
    importance.keep(1, 0, ranks)
    assert torch.equal(importance.score(0), scores[0][:, ranks])
    assert torch.equal(importance.score(1), scores[1][ranks])


def test_the_state_goes_through_its_dict():
    first, second = (Importance([torch.empty(3), torch.empty(2, 2)], 0.5, 0.5) for _ in range(2))
    first.update([0, 1], [torch.rand(3), torch.rand(2, 2)])
    second.load_state_dict({n: t.clone() for n, t in first.state_dict().items()})
    assert all(torch.equal(first.score(i), second.score(i)) for i in range(2))
