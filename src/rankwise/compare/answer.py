"""The results in sentences: what to take, how small it may be, where the baseline stands, what cannot be said."""

from collections.abc import Iterator, Sequence

from rankwise.compare.results import Row
from rankwise.compare.spec import Spec
from rankwise.compare.statistics import mean, noise, paired_p, smallest_p

SIGNIFICANT = 0.05


def answer(spec: Spec, rows: Sequence[Row]) -> list[str]:
    """In the order in which somebody asks."""
    known = [row for row in rows if row.scores]
    if not known:
        return ["Nothing has been run yet."]
    return [
        *_recommendation(known),
        *(sentence for task in spec.tasks for sentence in _of_task([r for r in known if r.entry.task == task])),
        *_against_baseline(known),
        *_reservations(known),
    ]


def shown(score: float) -> str:
    return f"{score:.4f}" if abs(score) < 10 else f"{score:.2f}"


def best_of(rows: Sequence[Row]) -> Row:
    """The row of one task with the best mean."""
    return min(rows, key=lambda row: -_upwards(row))


def within_noise(row: Row, best: Row) -> bool:
    """Whether the difference of the means is less than two of its standard errors; without spread, whether there is
    none. Never where a run fell far behind its search: the spread that it makes would let anything pass."""
    if row is not best and any(_behind_the_search(row)):
        return False
    least = noise(list(row.scores.values()), list(best.scores.values())) or 0.0
    return row is best or _upwards(best) - _upwards(row) <= least


def _upwards(row: Row) -> float:
    """The mean score, so that more is better."""
    found = mean(list(row.scores.values()))
    return found if row.upwards else -found


def _size(row: Row) -> float:
    """Parameters that train at the end, without heads."""
    return (row.average("trainable_end") or 0.0) - (row.average("head_parameters") or 0.0)


def _cost(row: Row) -> float:
    """Parameters that train on average, without heads."""
    return (row.average("trainable_average") or 0.0) - (row.average("head_parameters") or 0.0)


def _recommendation(rows: Sequence[Row]) -> Iterator[str]:
    """Who is most often within the noise of a task's best; of equals, who trains the fewest parameters on average."""
    tasks = list(dict.fromkeys(row.entry.task for row in rows))
    best = {task: best_of([row for row in rows if row.entry.task == task]) for task in tasks}
    of_name: dict[str, list[Row]] = {}
    for row in rows:
        of_name.setdefault(row.name, []).append(row)
    complete = {name: found for name, found in of_name.items() if len(found) == len(tasks)}
    if not complete:
        yield "No method has a run on every task yet, so none can be recommended."
        return
    near = {n: sum(within_noise(row, best[row.entry.task]) for row in found) for n, found in complete.items()}
    taken = min(complete, key=lambda name: (-near[name], mean([_cost(row) for row in complete[name]])))
    cost = mean([_cost(row) for row in complete[taken]])
    left = [name for name in of_name if name not in complete]
    yield (
        f"Take {taken}: within the noise of the best on {near[taken]} of {len(tasks)} tasks, with {cost:,.0f} "
        "trainable parameters on average over its runs, heads not counted."
        + (f" Not considered, for want of a run on some task: {', '.join(left)}." if left else "")
    )


def _of_task(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    best = best_of(rows)
    smallest = min((row for row in rows if within_noise(row, best)), key=lambda row: (_size(row), _cost(row)))
    yield (
        f"{best.entry.task}: {best.name} has the best {best.metric}, {_told(best)}; the smallest within its noise is "
        f"{smallest.name}, {_told(smallest)}, with {_size(smallest):,.0f} parameters at the end."
        if smallest is not best
        else f"{best.entry.task}: {best.name} has the best {best.metric}, {_told(best)}, and nothing smaller is within "
        "its noise."
    )


def _told(row: Row) -> str:
    scores = list(row.scores.values())
    return f"{shown(mean(scores))} ({len(scores)} seed{'s' if len(scores) > 1 else ''})"


def _against_baseline(rows: Sequence[Row]) -> Iterator[str]:
    names = dict.fromkeys(row.name for row in rows if row.versus is not None)
    for name in names:
        pairs = {row.entry.task: (row, *row.pairs()) for row in rows if row.name == name}
        gains = {
            task: (mean(ours) - mean(theirs)) * (1 if row.upwards else -1)
            for task, (row, ours, theirs) in pairs.items()
            if ours
        }
        if not gains:
            continue
        wins, losses = ([f"{t} ({g:+.4f})" for t, g in gains.items() if (g > 0) is won] for won in (True, False))
        other = " or ".join(dict.fromkeys(row.versus.name for row, *_ in pairs.values() if row.versus))
        verb = [f"beats {other} on {', '.join(wins)}"] if wins else []
        verb += [f"does not beat {other} on {', '.join(losses)}"] if losses else []
        yield f"{name} {' and '.join(verb)}{_tested(list(pairs.values()))}."


def _tested(found: Sequence[tuple[Row, list[float], list[float]]]) -> str:
    """p over all pairs of all tasks, each difference so that more is better."""
    signs = [1 if row.upwards else -1 for row, ours, _ in found for _ in ours]
    ours = [score for _, own, _ in found for score in own]
    theirs = [score for _, _, others in found for score in others]
    p = paired_p([s * o for s, o in zip(signs, ours, strict=True)], [s * t for s, t in zip(signs, theirs, strict=True)])
    verdict = "" if p is None or p <= SIGNIFICANT else ", which is not significant"
    pairs = "1 pair" if len(ours) == 1 else f"{len(ours)} pairs"
    return f"; over {pairs} of runs p = {p:.3g}{verdict}"


def _reservations(rows: Sequence[Row]) -> Iterator[str]:
    seeds = max(len(row.scores) for row in rows)
    least = smallest_p(seeds)
    if seeds == 1:
        yield "With one seed there is no spread, and nothing here can be told from noise."
    elif least > SIGNIFICANT:
        yield (
            f"With {seeds} seeds the test cannot give less than p = {least:g} on one task, whatever the difference: "
            f"none of them is significant by itself. {_needed()} seeds could be."
        )
    behind = [one for row in rows for one in _behind_the_search(row)]
    if behind:
        yield (
            "Runs far behind what their learning rate had in the search, which is shorter: "
            f"{'; '.join(behind)}. A lower rate may be steadier."
        )
    edges = [
        f"{row.entry.name} ({row.rate:g})"
        for row in rows
        if len(row.entry.rates) > 2 and row.rate in (min(row.entry.rates), max(row.entry.rates))
    ]
    if edges:
        yield f"The best learning rate is at the edge of its grid for {', '.join(edges)}: a wider grid may do better."


def _behind_the_search(row: Row) -> Iterator[str]:
    """Runs without a score, and those that lost more than a tenth of the one in the search."""
    searched = row.searched
    if searched is None:
        return
    for seed, run in row.runs.items():
        score = run["score"]
        lost = float("inf") if score is None else (searched - score) * (1 if row.upwards else -1)
        if lost > abs(searched) / 10:
            ended = "no score" if score is None else shown(score)
            yield f"{row.entry.name}, seed {seed} ({ended}; {shown(searched)} in the search)"


def _needed() -> int:
    """The least number of seeds that can be significant."""
    return next(n for n in range(2, 100) if smallest_p(n) <= SIGNIFICANT)
