"""Spans, phases and the two curves, against the literal schedules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.allocation.schedule import Epochs, Phases, cubic_budget, epochs, frozen_share, parse_span, steps_of
from rankwise.errors import ConfigError, ScheduleError
from reference.schedules import budget_schedule, erratum_budget, frozen_fraction


@st.composite
def phases(draw: st.DrawFn) -> Phases:
    warmup, cooldown = draw(st.integers(0, 60)), draw(st.integers(1, 60))
    total = warmup + cooldown + draw(st.integers(1, 60))
    return Phases(total, warmup, cooldown, draw(st.integers(1, 9)))


RTE = Phases(total=3900, warmup=600, cooldown=1800, every=1)


@pytest.mark.parametrize(
    ("step", "budget"),
    [(599, 864), (600, 864), (601, 863), (1000, 689), (1350, 612), (2000, 576), (2099, 576), (2100, 576)],
)
def test_budget_of_the_rte_run(step: int, budget: int):
    assert cubic_budget(step, RTE, 864, 576) == budget


def test_the_printed_formula_would_grow_the_budget():
    literal = erratum_budget(600, total=3900, warmup=600, cooldown=1800, start=864, end=576)
    assert literal > 864 == cubic_budget(600, RTE, 864, 576)


@given(phases(), st.integers(1, 900), st.integers(0, 900))
def test_budget_is_the_literal_one_and_only_falls(run: Phases, end: int, more: int):
    start, T = end + more, run.total
    schedule = {"total": T, "warmup": run.warmup, "cooldown": run.cooldown, "every": run.every}
    budgets = [cubic_budget(t, run, start, end) for t in range(T)]
    assert budgets == [budget_schedule(t, **schedule, start=start, end=end)[0] for t in range(T)]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[0] == start and budgets[-1] == end


@given(phases())
def test_frozen_share_is_the_literal_one_and_only_grows(run: Phases):
    shares = [frozen_share(t, run) for t in range(run.total)]
    assert shares == [frozen_fraction(t, run.total, run.warmup, run.cooldown) for t in range(run.total)]
    assert shares == sorted(shares) and shares[run.warmup] == 0 and shares[run.finish] == 1


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_run_without_room_is_refused(total: int, warmup: int, cooldown: int):
    if warmup + max(cooldown, 1) < total:
        assert 0 <= warmup < Phases(total, warmup, cooldown, 1).finish < total
    else:
        with pytest.raises(ScheduleError, match=f"warmup={warmup} .*cooldown={cooldown} .*total_steps={total} "):
            Phases(total, warmup, cooldown, 1)


@pytest.mark.parametrize("total", [0, -2])
def test_a_run_without_steps_is_refused(total: int):
    with pytest.raises(ScheduleError, match=f"total_steps={total} is no run; give its number of optimizer steps"):
        Phases(total, 0, 0, 1)


def test_a_final_phase_has_a_step_even_without_a_cooldown():
    assert Phases(10, 0, 0, 1).finish == 9


@pytest.mark.parametrize(
    ("span", "steps"),
    [(30, 30), (0, 0), (0.1, 20), (0.0, 0), (0.333, 67), ("1 epoch", 25), ("2.5 epochs", 62), (epochs(3), 75)],
)
def test_spans(span, steps: int):
    assert steps_of(span, "warmup", total_steps=200, steps_per_epoch=25) == steps


@pytest.mark.parametrize(
    "span",
    [
        1.0,
        -0.1,
        -1,
        "epoch",
        "1",
        "0.5",
        "1 step",
        "-1 epoch",
        "1 epoch 2",
        "nan epochs",
        True,
        None,
        [1],
        float("nan"),
    ],
)
def test_what_is_no_span(span):
    with pytest.raises(ConfigError, match=r"cooldown=.*(Write steps|must be in)"):
        parse_span(span, "cooldown")


def test_epochs_need_their_length():
    with pytest.raises(ScheduleError, match=r"warmup is 1 epoch, .*steps_per_epoch=\.\.\."):
        steps_of(Epochs(1), "warmup", 100, None)
    with pytest.raises(ConfigError):
        epochs(-1)
