"""The published schedules as functions of the step t = 0, 1, 2, ...

Letters of the papers: T = total, t_i = warmup, t_f = cooldown, b0 = start, bT = end, ΔT = every.
"""

import math


def check_room(total: int, warmup: int, cooldown: int) -> None:
    """T > t_i + t_f, which the published code asserts too: a step to prune in must be left."""
    if total <= warmup + cooldown:
        raise ValueError(f"warmup={warmup} + cooldown={cooldown} leave no step of {total} to prune in")


def budget_schedule(
    t: int, *, total: int, warmup: int, cooldown: int, start: int, end: int, every: int
) -> tuple[int, bool]:
    """AdaLoRA: the number of live triplets at step t, and whether step t masks.

    The form of the published code, whose numerator is t - t_i, with u = 1 - (t - t_i) / (T - t_f - t_i):

        t <= t_i              (b0, no mask)
        t_i < t <= T - t_f    (trunc(bT + (b0 - bT) u³), mask iff t mod ΔT == 0)
        t >  T - t_f          (bT, mask)

    One deviation: at t == T - t_f (u = 0, so b = bT) the mask is forced, as PEFT does. The authors' code
    masks there only if ΔT divides t.
    With t_f = 0 the last step of a run is T - 1 < T - t_f, so the final phase never begins.
    """
    check_room(total, warmup, cooldown)
    if t <= warmup:
        return start, False
    if t > total - cooldown:
        return end, True
    u = 1 - (t - warmup) / (total - cooldown - warmup)
    budget = math.trunc(end + (start - end) * u**3)
    return budget, t % every == 0 or t == total - cooldown


def erratum_budget(t: int, *, total: int, warmup: int, cooldown: int, start: int, end: int) -> float:
    """ERRATUM: AdaLoRA's budget exactly as the paper prints it, real-valued. Nobody should train with it.

        t < t_i               b0
        t_i <= t < T - t_f    bT + (b0 - bT) (1 - (t - t_i - t_f) / (T - t_i - t_f))³
        t >= T - t_f          bT

    The printed numerator has a t_f too many: the budget jumps ABOVE b0 at t_i and drops to bT at T - t_f.
    """
    check_room(total, warmup, cooldown)
    if t < warmup:
        return float(start)
    if t >= total - cooldown:
        return float(end)
    u = 1 - (t - warmup - cooldown) / (total - warmup - cooldown)
    return end + (start - end) * u**3


def frozen_fraction(t: int, total: int, warmup: int, cooldown: int) -> float:
    """AFLoRA: the fraction r(t) of projections that is frozen at step t.

    t <= t_i              0
    t_i < t <= T - t_f    1 - (1 - (t - t_i) / (T - t_i - t_f))³
    t >  T - t_f          1
    """
    check_room(total, warmup, cooldown)
    if t <= warmup:
        return 0.0
    if t > total - cooldown:
        return 1.0
    return 1 - (1 - (t - warmup) / (total - warmup - cooldown)) ** 3
