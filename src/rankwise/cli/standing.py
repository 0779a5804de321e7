"""Where a run stands, from the lines of history.jsonl and metrics.jsonl."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rankwise.cli.growing import Line
from rankwise.errors import FolderError
from rankwise.io.description import fits
from rankwise.io.untrusted import brief

EVENTS: Mapping[str, Mapping[str, Any]] = {
    "started": {"total_steps": int | None, "ranks": dict[str, int]},
    "allocated": {"budget": int, "ranks": dict[str, int]},
    "closed": {"ranks": dict[str, int]},
    "froze": {"share": float, "frozen": list[str]},
    "skipped_non_finite": {},
}
NUMBER = float | None  # JSON has no NaN: what is none is null


@dataclass
class Standing:
    """All that is known so far; empty before the first line."""

    total_steps: int | None = None
    step: int = 0
    starting: dict[str, int] = field(default_factory=dict)  # ranks by layer
    ranks: dict[str, int] = field(default_factory=dict)  # those that live
    live: list[int] = field(default_factory=list)  # ranks of all layers, after each decision
    budget: int | None = None
    frozen: set[str] = field(default_factory=set)  # projections
    share: float | None = None  # of the projections that may freeze
    skipped: int = 0
    losses: list[float] = field(default_factory=list)
    evaluated: dict[str, float] = field(default_factory=dict)  # the last evaluation
    clock: list[tuple[int, float]] = field(default_factory=list)  # (step, seconds) of the process that is running

    @property
    def seconds_per_step(self) -> float | None:
        """Pauses for evaluation and checkpoints included. None before there are two points in time."""
        if len(self.clock) < 2:
            return None
        (first, began), (last, now) = self.clock[0], self.clock[-1]
        return None if last == first else (now - began) / (last - first)

    @property
    def seconds_left(self) -> float | None:
        """Of training, by the pace so far."""
        pace = self.seconds_per_step
        return None if pace is None or self.total_steps is None else pace * (self.total_steps - self.step)

    def decided(self, event: Line) -> None:
        """Take in a line of history.jsonl. Raises FolderError for what is none."""
        kind = event.get("event")
        wanted = EVENTS.get(kind) if isinstance(kind, str) else None
        if wanted is None or not all(fits(event.get(name), hint) for name, hint in wanted.items()):
            raise FolderError(f"a line of the history is none that this version knows: {brief(event)}.")
        self.step = max(self.step, event["step"])
        match kind:
            case "started":
                self.total_steps, self.starting = event["total_steps"], event["ranks"]
                self.ranks = self.starting
            case "allocated" | "closed":
                self.ranks = event["ranks"]
                self.live.append(sum(self.ranks.values()))
                self.budget = event.get("budget")
            case "froze":
                self.frozen |= set(event["frozen"])
                self.share = event["share"]
            case _:
                self.skipped += 1

    def logged(self, line: Line) -> None:
        """Take in a line of metrics.jsonl."""
        self.step = max(self.step, line["step"])
        if fits(line.get("loss"), float):
            self.losses.append(line["loss"])
        if "loss" in line and fits(line.get("seconds"), float):
            if self.clock and line["seconds"] < self.clock[-1][1]:
                self.clock = []  # a resumed run counts from its own beginning
            self.clock.append((line["step"], line["seconds"]))
        scores = {n.removeprefix("eval_"): v for n, v in line.items() if n.startswith("eval_") and fits(v, float)}
        if scores:
            self.evaluated = {n: v for n, v in scores.items() if not n.endswith(("runtime", "per_second"))}
