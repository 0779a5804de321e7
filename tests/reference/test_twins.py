"""The twins themselves, against the published numbers and against cases small enough to do by hand."""

import math

import pytest
import torch

from reference.adalora import AdaLoRATwin, Triplets
from reference.aflora import AFLoRATwin
from reference.schedules import budget_schedule, erratum_budget, frozen_fraction

RTE = {"total": 3900, "warmup": 600, "cooldown": 1800, "start": 864, "end": 576}

# ---------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("t", "budget", "erratum"),
    [
        (599, 864, 864.0),
        (600, 864, 3642.6),
        (601, 863, 3639.8),
        (1000, 689, 2657.2),
        (1350, 612, 1990.9),
        (2000, 576, 1161.3),
        (2099, 576, 1074.5),
        (2100, 576, 576.0),
    ],
)
def test_budget_of_the_rte_run(t, budget, erratum):
    assert budget_schedule(t, **RTE, every=1)[0] == budget
    assert round(erratum_budget(t, **RTE), 1) == erratum


def test_when_the_budget_is_applied():
    applied = [t for t in range(3900) if budget_schedule(t, **RTE, every=70)[1]]
    assert [t for t in applied if t < 2100] == list(range(630, 2100, 70))  # 600 = t_i does not mask
    assert [t for t in applied if t >= 2100] == list(range(2100, 3900))
    assert budget_schedule(2100, **RTE, every=11) == (576, True)  # 11 does not divide 2100: forced
    assert not budget_schedule(0, total=10, warmup=0, cooldown=2, start=4, end=2, every=1)[1]


def test_budget_never_grows_and_the_erratum_exceeds_its_start():
    budgets = [budget_schedule(t, **RTE, every=1)[0] for t in range(3900)]
    assert budgets == sorted(budgets, reverse=True)
    assert erratum_budget(RTE["warmup"], **RTE) > RTE["start"]


def test_frozen_fraction():
    r = [frozen_fraction(t, 100, 10, 70) for t in range(100)]
    assert r[0] == r[10] == 0.0
    assert r[11] == pytest.approx(1 - 0.95**3)
    assert r[20] == 0.875  # half of the window: 1 - (1/2)³
    assert r[30] == r[31] == r[99] == 1.0
    assert r == sorted(r)


def test_schedules_without_room_are_refused():
    with pytest.raises(ValueError, match="leave no step of 100"):
        frozen_fraction(0, 100, 30, 70)
    with pytest.raises(ValueError, match="leave no step of 3900"):
        budget_schedule(0, **{**RTE, "warmup": 2100}, every=1)


# ---------------------------------------------------------------------- AdaLoRA


def triplets(P, lam, Q):
    return Triplets(torch.tensor(P), torch.tensor(lam), torch.tensor(Q))


def one_matrix(**settings):
    """d_out = 2, r = 1, d_in = 1."""
    settings = {"total": 10, "warmup": 1, "cooldown": 3, "every": 1, "target": 1} | settings
    return AdaLoRATwin([triplets([[1.0], [2.0]], [3.0], [[4.0]])], **settings)


def test_importance_of_two_steps_by_hand():
    twin = one_matrix()
    # step 0: I(λ) = |2 · 0.5| = 1; step 1: I(λ) = |1 · -3| = 3; the second element of P has no gradient
    twin.update_importance([triplets([[1.0], [2.0]], [2.0], [[4.0]])], [triplets([[-1.0], [0.0]], [0.5], [[0.0]])])
    assert twin.impact_mean[0].lam.item() == pytest.approx(0.15)
    assert twin.uncertainty[0].lam.item() == pytest.approx(0.15 * (1 - 0.15))
    assert twin.impact_mean[0].P.flatten().tolist() == pytest.approx([0.15, 0.0])
    # s(λ) = s(P_1) = 0.15 · 0.1275, s(P_2) = s(Q) = 0
    assert twin.scores()[0].item() == pytest.approx(0.15 * 0.1275 * (1 + 1 / 2))

    twin.update_importance([triplets([[0.0], [2.0]], [1.0], [[4.0]])], [triplets([[5.0], [0.0]], [-3.0], [[0.5]])])
    i_lam = 0.85 * 0.15 + 0.15 * 3
    u_lam = 0.85 * 0.1275 + 0.15 * (3 - i_lam)
    assert (i_lam, u_lam) == pytest.approx((0.5775, 0.47175))
    i_P = 0.85 * 0.15  # w = 0, so I = 0, although its gradient is not
    u_P = 0.85 * 0.1275 + 0.15 * abs(0 - i_P)
    i_Q, u_Q = 0.15 * 2, 0.15 * (2 - 0.3)
    assert twin.scores()[0].item() == pytest.approx(i_lam * u_lam + i_P * u_P / 2 + i_Q * u_Q)


@pytest.mark.parametrize(
    ("score", "expected"),
    [("sensitivity", 0.5775 + 0.1275 / 2 + 0.3), ("raw_sensitivity", 3.0 + 0.0 + 2.0), ("magnitude", 1.0)],
)
def test_other_scores_by_hand(score, expected):
    twin = one_matrix(score=score)
    twin.update_importance([triplets([[1.0], [2.0]], [2.0], [[4.0]])], [triplets([[-1.0], [0.0]], [0.5], [[0.0]])])
    twin.update_importance([triplets([[0.0], [2.0]], [-1.0], [[4.0]])], [triplets([[5.0], [0.0]], [-3.0], [[0.5]])])
    assert twin.scores()[0].item() == pytest.approx(expected)


def test_score_at_says_which_weights_are_scored():
    grads = [triplets([[0.0], [0.0]], [1.0], [[0.0]])]
    before, after = (
        [triplets([[1.0], [2.0]], [3.0], [[4.0]])],
        [triplets([[1.0], [2.0]], [2.5], [[4.0]])],
    )
    for score_at, impact in (("before_step", 3.0), ("after_step", 2.5)):
        twin = one_matrix(score_at=score_at)
        twin.step(0, grads, before, after)
        assert twin.impact[0].lam.item() == impact
        assert twin.matrices[0].lam.item() == 2.5


def test_penalty_gradient_by_hand():
    # d_out = r = d_in = 1, n = 2: R = 1/4 Σ (|p² - 1| + |q² - 1|), whose derivative in p is ± p / 2,
    # or R = Σ ((p² - 1)² + (q² - 1)²), whose derivative in p is 4 p (p² - 1)
    matrices = [triplets([[2.0]], [5.0], [[0.5]]), triplets([[1.0]], [5.0], [[-3.0]])]
    twin = AdaLoRATwin(matrices, total=10, warmup=1, cooldown=3, every=1, target=1)
    assert twin.penalty("mean_norm").item() == pytest.approx((3 + 0.75 + 0 + 8) / 4)
    assert twin.penalty("sum_of_squares").item() == pytest.approx(9 + 0.5625 + 0 + 64)
    flat = {
        form: [w.item() for matrix in twin.penalty_gradient(form) for w in matrix]
        for form in ("mean_norm", "sum_of_squares")
    }
    # at exact orthonormality (p = 1) the un-squared norm has gradient 0
    assert flat["mean_norm"] == pytest.approx([1.0, 0.0, -0.25, 0.0, 0.0, -1.5])
    assert flat["sum_of_squares"] == pytest.approx([4 * 2 * 3, 0.0, 4 * 0.5 * -0.75, 0.0, 0.0, 4 * -3 * 8])


@pytest.mark.parametrize(("d", "expected"), [(768, 2.404), (3072, 0.839)])
def test_orthogonality_at_initialisation(d, expected):
    """E‖PᵀP - I‖_F for P ~ N(0, 0.02²), r = 12; root mean square √(r(1 - dσ²)² + 2rdσ⁴ + r(r - 1)dσ⁴)."""
    r, sigma = 12, 0.02
    rms = math.sqrt(r * (1 - d * sigma**2) ** 2 + 2 * r * d * sigma**4 + r * (r - 1) * d * sigma**4)
    generator = torch.Generator().manual_seed(0)
    norms = []
    for _ in range(40):
        P, Q = (torch.randn(shape, generator=generator) * sigma for shape in ((d, r), (r, d)))
        twin = AdaLoRATwin([Triplets(P, torch.zeros(r), Q)], total=10, warmup=1, cooldown=3, every=1, target=8)
        norms.append(twin.penalty("mean_norm").item())
    norms = torch.tensor(norms)
    assert norms.mean().item() == pytest.approx(expected, abs=0.02)
    assert norms.square().mean().sqrt().item() == pytest.approx(rms, abs=0.02)


S = [torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.0, 2.0, 0.0])]


@pytest.mark.parametrize(
    ("b", "exact", "drop"),
    [
        (0, [[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]),
        (1, [[1, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 0]]),
        (2, [[1, 0, 1], [0, 0, 0]], [[1, 0, 0], [0, 0, 0]]),
        (3, [[1, 0, 1], [1, 0, 0]], [[1, 0, 0], [0, 0, 0]]),
        (4, [[1, 0, 1], [1, 1, 0]], [[1, 0, 1], [1, 1, 0]]),
        (5, [[1, 1, 1], [1, 1, 0]], [[1, 1, 1], [1, 1, 0]]),
        (6, [[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 1]]),
    ],
)
def test_ties(b, exact, drop):
    for ties, expected in (("exact", exact), ("drop", drop)):
        assert [mask.int().tolist() for mask in AdaLoRATwin.top_b(S, b, ties)] == expected


def test_equal_scores():
    scores = [torch.zeros(3), torch.zeros(3)]
    assert [m.tolist() for m in AdaLoRATwin.top_b(scores, 4)] == [[True] * 3, [True, False, False]]
    assert [m.tolist() for m in AdaLoRATwin.top_b(scores, 4, "drop")] == [[False] * 3, [False] * 3]


def regression(seed, steps, **settings):
    """Two matrices of rank 4 trained by the twin alone; yields the twin after every step."""
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    matrices = [
        Triplets(0.02 * random(6, 4), torch.zeros(4), 0.02 * random(4, 5)),
        Triplets(0.02 * random(3, 4), torch.zeros(4), 0.02 * random(4, 6)),
    ]
    twin = AdaLoRATwin(matrices, **({"total": steps, "warmup": 5, "cooldown": 20, "every": 4, "target": 3} | settings))
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    W0, W1, teacher = random(6, 5), random(3, 6), random(3, 5)
    for t in range(steps):
        x = random(8, 5)
        y = torch.tanh(x @ (W0 + twin.delta(0, 1.0)).T) @ (W1 + twin.delta(1, 1.0)).T
        loss = (y - x @ teacher.T).square().mean()
        twin.train_step(t, loss, optimizer)
        yield t, twin


def dead(twin):
    return [(matrix.lam == 0).tolist() for matrix in twin.matrices]


@pytest.mark.parametrize("score", ["sensitivity_uncertainty", "sensitivity", "raw_sensitivity", "magnitude"])
def test_release_frees_between_masks_and_hold_does_not(score):
    released = held_back = 0
    for t, twin in regression(0, 60, score=score, mask="release"):
        masked = [(~mask).tolist() for mask in twin.masks]
        if t > 5 and (t % 4 == 0 or t >= 40):
            assert twin.masked and dead(twin) == masked
            assert sum(int(mask.sum()) for mask in twin.masks) == twin.budget
        elif t > 8:
            released += dead(twin) != masked
    for t, twin in regression(0, 60, score=score, mask="hold"):
        if t >= 8:
            assert dead(twin) == [(~mask).tolist() for mask in twin.masks]
            held_back += not budget_schedule(t, total=60, warmup=5, cooldown=20, start=8, end=3, every=4)[1]
    assert released > 10 and held_back > 10


@pytest.mark.parametrize("score", ["sensitivity_uncertainty", "magnitude"])
def test_the_final_phase_keeps_one_mask(score):
    final = set()
    for t, twin in regression(1, 60, score=score, every=7):  # 7 does not divide 40 = T - t_f
        if t == 39:
            scores = torch.cat(twin.scores())
        if t >= 40:
            assert torch.equal(torch.cat(twin.scores()), scores)  # the last update was that of T - t_f - 1
            final.add(str([mask.tolist() for mask in twin.masks]))
            assert sum((matrix.lam != 0).sum().item() for matrix in twin.matrices) == 3
    assert len(final) == 1


# ---------------------------------------------------------------------- AFLoRA


def scalar_projections(**settings):
    settings = {"total": 30, "warmup": 2, "cooldown": 10, "every": 2} | settings
    return AFLoRATwin(dict.fromkeys("abcd", (1, 1)), **settings)


def scalars(**values):
    return {name: torch.tensor([[float(value)]]) for name, value in values.items()}


def test_windows_by_hand():
    twin = scalar_projections()
    p = scalars(a=2, b=1, c=1, d=0)
    signals = [1.0, -3.0, 5.0, 0.0, 0.0]
    for t, g in enumerate(signals[:2]):
        twin.step(t, p, scalars(a=g, b=0, c=0, d=1))
    # t = 0: the window before it is empty, so the means are still 0
    assert twin.signal_mean["a"].item() == twin.uncertainty["a"].item() == 0
    assert twin.window["a"].item() == 2.0  # (1 + 3) / 2
    twin.step(2, p, scalars(a=signals[2], b=0, c=0, d=1))
    i_1, u_1 = 0.15 * 2, 0.05 * (2 - 0.15 * 2)
    assert twin.signal_mean["a"].item() == pytest.approx(i_1)
    assert twin.uncertainty["a"].item() == pytest.approx(u_1)
    assert twin.window["a"].item() == 5.0
    twin.step(3, p, scalars(a=signals[3], b=0, c=0, d=1))
    assert twin.signal_mean["a"].item() == pytest.approx(i_1)  # once per window
    twin.update_scores(4, p, scalars(a=signals[4], b=0, c=0, d=1))
    i_2 = 0.85 * i_1 + 0.15 * 2.5
    u_2 = 0.95 * u_1 + 0.05 * (2.5 - i_2)
    assert twin.scores()["a"] == pytest.approx(i_2 * u_2)


@pytest.mark.parametrize(
    ("signal", "a", "d"), [("gradient", 3.0, 1.0), ("sensitivity", 6.0, 0.0), ("relative_gradient", 1.5, 0.0)]
)
def test_signals_by_hand(signal, a, d):
    twin = scalar_projections(signal=signal)
    p, g = scalars(a=2, b=1, c=1, d=0), scalars(a=-3, b=1, c=1, d=1)
    assert twin.element_signal(p["a"], g["a"]).item() == a
    assert twin.element_signal(p["d"], g["d"]).item() == d


def test_count_freezes_the_lowest_scores_ties_in_order():
    twin = scalar_projections()  # t_i = 2, T - t_f = 20: r = 1 - (1 - (t - 2) / 18)³
    weights, grads = scalars(a=1, b=1, c=1, d=1), scalars(a=2, b=1, c=2, d=1)
    frozen = {t: twin.step(t, weights, grads) for t in range(30)}
    # ⌊4 r⌋ at even t = 2, 4, 6, 8, 10, ...: 0, ⌊1.19⌋, ⌊2.12⌋, ⌊2.81⌋, ⌊3.31⌋, ...; 4 only at t = 20
    assert frozen[3] == set()
    assert frozen[4] == frozen[5] == {"b"}  # b ties with d, and comes first
    assert frozen[6] == frozen[8] == {"b", "d"}
    assert frozen[10] == frozen[19] == {"a", "b", "d"}
    assert frozen[20] == frozen[29] == {"a", "b", "c", "d"}
    assert twin.events == [(4, "b"), (6, "d"), (10, "a"), (20, "c")]


@pytest.mark.parametrize("freeze_rule", ["count", "elementwise_quantile"])
def test_everything_left_freezes_after_the_last_window(freeze_rule):
    # ΔT = 40 has no border between t_i and T - t_f: nothing freezes before t = T - t_f, then all at once
    twin = scalar_projections(every=40, freeze_rule=freeze_rule)
    for t in range(30):
        twin.step(t, scalars(a=1, b=1, c=1, d=1), scalars(a=1, b=2, c=3, d=4))
    assert twin.events == [(20, name) for name in "abcd"]


def test_elementwise_quantile_by_hand():
    twin = AFLoRATwin(
        {"x": (1, 4), "y": (2, 2), "z": (1, 2)},
        total=20,
        warmup=0,
        cooldown=10,
        every=5,
        freeze_rule="elementwise_quantile",
    )
    twin.signal_mean = {
        "x": torch.tensor([[1.0, 1.0, 1.0, 9.0]]),  # mean 3
        "y": torch.tensor([[2.0, 2.0], [2.0, 2.0]]),  # mean 2
        "z": torch.tensor([[0.0, 8.0]]),  # mean 4
    }
    twin.uncertainty = {name: torch.ones_like(mean) for name, mean in twin.signal_mean.items()}
    assert twin.below_quantile(0) == []  # rank 0
    # sorted: 0 1 1 1 2 2 2 2 8 9
    assert twin.below_quantile(1) == []  # r = 0.271: 2nd, θ = 1
    assert twin.below_quantile(4) == []  # r = 0.784: 7th, θ = 2, and y's mean is not below it
    assert twin.below_quantile(5) == []  # r = 0.875: 8th, θ = 2
    assert twin.below_quantile(6) == ["x", "y", "z"]  # r = 0.936: 9th, θ = 8: all at once
    twin.frozen.add("x")  # N = 6 of what is left: 0 2 2 2 2 8
    assert twin.below_quantile(5) == []  # 5th, θ = 2
    assert twin.below_quantile(10) == ["y", "z"]  # r = 1: θ is the largest


@pytest.mark.parametrize("freeze_rule", ["count", "elementwise_quantile"])
@pytest.mark.parametrize("signal", ["gradient", "sensitivity", "relative_gradient"])
def test_frozen_stays_frozen_on_a_random_stream(signal, freeze_rule):
    generator = torch.Generator().manual_seed(0)
    shapes = {f"{layer}.{m}": shape for layer in range(4) for m, shape in (("A", (2, 6)), ("B", (5, 2)))}
    twin = AFLoRATwin(shapes, total=60, warmup=6, cooldown=30, every=3, signal=signal, freeze_rule=freeze_rule)
    before: set[str] = set()
    for t in range(60):
        weights = {name: torch.randn(shapes[name], generator=generator) for name in twin.trainable()}
        grads = {name: torch.randn(shapes[name], generator=generator) for name in twin.trainable()}
        frozen = twin.step(t, weights, grads)  # only what is trainable is asked for
        assert before <= frozen
        assert t % 3 == 0 or t >= 30 or frozen == before
        if freeze_rule == "count" and t % 3 == 0:
            assert len(frozen) == math.floor(8 * frozen_fraction(t, 60, 6, 30))
        before = frozen
    assert before == set(shapes) and len(twin.events) == 8
