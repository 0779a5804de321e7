"""How ranks, frozen projections and parameters went, from the decisions of a run. Pure: no files, no figures.

n(t) = n(0) − Σ over dead ranks (d_out + d_in + gates) − Σ over frozen projections (r·d_in or d_out·r)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankwise.report.run import Run, Shapes

# Numbers of a rank beside its column and its row: λ of a triplet, SoRA's gate.
GATES = {"adalora": 1, "freezing-adalora": 1, "sora": 1, "pruned-lora": 0, "aflora": 0}
ENTERS, LEAVES = ("A", "Q"), ("B", "P")  # projections (r, d_in) and (d_out, r)


@dataclass(frozen=True)
class Moment:
    """How things stand from the end of a step on."""

    step: int
    ranks: Mapping[str, int]  # live ranks of each layer
    frozen: frozenset[str]  # names of projections

    @property
    def live(self) -> int:
        return sum(self.ranks.values())


def course(run: Run) -> list[Moment]:
    """One moment for each step that changed something; empty for a method without ranks."""
    moments: list[Moment] = []
    ranks: Mapping[str, int] = {}
    frozen: frozenset[str] = frozenset()
    for event in run.events:
        if event["event"] == "started":
            ranks = ranks or event["ranks"]
        elif "ranks" in event:
            ranks = {**ranks, **event["ranks"]}
        elif event["event"] == "froze":
            frozen = frozen | set(event["frozen"])
        step = event["step"] + (event["event"] != "started")  # decided after that step
        if not moments or (ranks, frozen) != (moments[-1].ranks, moments[-1].frozen):
            if moments and moments[-1].step == step:
                moments.pop()
            moments.append(Moment(step, ranks, frozen))
    return moments if moments and moments[0].ranks else []


def changes_ranks(moments: Sequence[Moment]) -> bool:
    return any(m.ranks != moments[0].ranks for m in moments)


@dataclass(frozen=True)
class Sizes:
    """Numbers in the adapter from the end of a step on."""

    step: int
    trains: int  # what still learns, heads included
    alive: int  # that and what froze: what a compacted adapter holds


def sizes(run: Run, moments: Sequence[Moment]) -> list[Sizes]:
    """The course of the parameter counts; empty where a run has not said enough yet, or has a method of its own."""
    if run.results is None:
        return []
    start, end = run.results["trainable_start"], run.results["trainable_end"]
    if start == end:
        return [Sizes(0, start, start), Sizes(run.last_step, end, end)]
    if not moments or run.shapes is None or run.method not in GATES or run.shapes.keys() != moments[0].ranks.keys():
        return []
    gates, before = GATES[run.method], moments[0].ranks
    found = []
    for moment in moments:
        dead = {n: before[n] - r for n, r in moment.ranks.items()}
        alive = start - sum(k * (sum(run.shapes[n]) + gates) for n, k in dead.items())
        still = sum(_numbers(name, moment.ranks, run.shapes) for name in moment.frozen)
        found.append(Sizes(moment.step, alive - still, alive))
    return [*found, Sizes(run.last_step, found[-1].trains, found[-1].alive)]


def _numbers(projection: str, ranks: Mapping[str, int], shapes: Shapes) -> int:
    """Of a frozen projection, "<layer>.<letter>"."""
    layer, _, letter = projection.rpartition(".")
    if layer not in shapes or letter not in ENTERS + LEAVES:
        return 0
    d_out, d_in = shapes[layer]
    return ranks[layer] * (d_in if letter in ENTERS else d_out)
