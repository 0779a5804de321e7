"""What a comparison is, as settings: the whole of its spec.yaml. Runs are described by the fields of a run's config."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rankwise.allocation.amount import parameters_of
from rankwise.errors import ConfigError, nearest

Counted = Literal["end", "average", "start"]
Size = str | int | dict[str, int]


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How the learning rate of each task, method and budget is found, on a part of the training rows."""

    learning_rates: list[float] | None = None
    """The grid; one rate is no search. A method may have its own here. None: 0.3, 1 and 3 times the rate that a run
    of the method takes by itself."""
    rows: int = 2000
    """Search on at most this many training rows, drawn with `seed`; the held-out ones are among them."""
    held_out: float = 0.2
    """Share of those rows that is not trained on, and decides."""
    seed: int = 0
    """Of the drawn rows and of the runs."""

    def __post_init__(self) -> None:
        if self.learning_rates is not None:
            check_rates(self.learning_rates, "search.learning_rates")
        if self.rows < 2:
            raise ConfigError(f"search.rows={self.rows}: some are trained on and some held out; 2 are the least.")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"search.held_out={self.held_out} is a share of the rows, such as 0.2.")


def check_rates(rates: Any, where: str) -> None:
    """Raise ConfigError for what is no list, a grid that holds nothing, or what is no learning rate."""
    listed = isinstance(rates, list) and len(rates) > 0
    if not listed or not all(isinstance(rate, int | float) and 0 < rate < 1e6 for rate in rates):
        raise ConfigError(f"{where}={rates!r} is no list of learning rates. Write it as in [0.0003, 0.001, 0.003].")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number from a paper, printed beside ours."""

    task: str
    """Name of the task here."""
    method: str
    """Label of the method here, or any name."""
    value: float
    """What the paper reports."""
    source: str
    """Where it stands."""
    budget: str | None = None
    """The budget it is printed beside. None: all."""
    metric: str | None = None
    """Its metric, where that is not the task's here."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Everything a comparison is made from."""

    base: dict[str, Any]
    """Fields of a run's configuration that all runs share: model, data, training, generation, ... without method and
    output."""
    tasks: dict[str, dict[str, Any]]
    """By name, what differs from `base`; metric (None: the task's deciding one) with higher_is_better; and methods: by
    label, what differs from `methods` on this task alone."""
    methods: dict[str, dict[str, Any]]
    """By label: {name: adalora, settings}, and beside them training (fields that replace the base's), learning_rates
    and counted, in place of the comparison's."""
    output: str
    """The folder of the comparison; one that was interrupted goes on."""
    budgets: list[Size] = field(default_factory=list)
    """Trainable parameters, heads not counted: 0.3M, 80k; or {rank: 4}. Empty: each method at the size it has here."""
    counted: Counted = "end"
    """What is to meet a budget: the parameters that train at the end of a run, on average over it, or at its start."""
    alpha_over_rank: float = 1.0
    """alpha/rank of every method with an alpha, unless its settings say alpha."""
    seeds: int | list[int] = 3
    """How many, counted from 0, or a list of them."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """The search for the learning rate of each method."""
    baseline: str | None = None
    """Label of the method that the others are tested against. None: the first."""
    published: list[Published] = field(default_factory=list)
    """Numbers that papers print, to show beside the results."""
    notes: list[str] = field(default_factory=list)
    """What differs from the papers; printed with the results."""

    def __post_init__(self) -> None:
        for kind, names in (("tasks", self.tasks), ("methods", self.methods)):
            check_names(kind, names)
        if len(set(self.seed_list)) != len(self.seed_list) or min(self.seed_list, default=-1) < 0:
            raise ConfigError(f"seeds={self.seeds!r} must be a number of seeds, or a list of different ones from 0 on.")
        if not self.alpha_over_rank > 0:
            raise ConfigError(f"alpha_over_rank={self.alpha_over_rank} scales the updates and must be positive.")
        labels = [label_of(budget) for budget in self.budgets]
        if len(set(labels)) != len(labels):
            raise ConfigError(f"budgets={labels}: one stands there twice.")
        if self.baseline is not None and self.baseline not in self.methods:
            raise ConfigError(
                f"baseline={self.baseline!r} is none of the methods {list(self.methods)}."
                + nearest(self.baseline, self.methods)
            )
        for published in self.published:
            if published.task not in self.tasks:
                raise ConfigError(
                    f"published has a number for the task {published.task!r}, which is none of {list(self.tasks)}."
                    + nearest(published.task, self.tasks)
                )

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    @property
    def baseline_label(self) -> str:
        return next(iter(self.methods)) if self.baseline is None else self.baseline

    def as_dict(self) -> dict[str, Any]:
        """As plain data, with the seeds written out."""
        return asdict(self) | {"seeds": self.seed_list}


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def check_names(kind: str, names: Mapping[str, Any]) -> None:
    """Raise ConfigError for names that could be no folder's."""
    wrong = [name for name in names if not NAME.fullmatch(str(name)) or name == "search"]
    if wrong or not names:
        raise ConfigError(
            f"{kind}={list(names)}: at least one, each of letters, digits and . _ + - ('search' is taken), for they "
            f"name folders{f'; {wrong[0]!r} cannot be' if wrong else ''}."
        )


def label_of(budget: Size) -> str:
    """What a budget is called: "0.3M", "80000", "rank4". Raises ConfigError for what is none."""
    if isinstance(budget, dict):
        if list(budget) != ["rank"] or type(budget["rank"]) is not int or budget["rank"] < 1:
            raise ConfigError(f"budgets: {budget} is none. Write a number of parameters (0.3M), or {{rank: 4}}.")
        return f"rank{budget['rank']}"
    parameters_of(str(budget))
    return str(budget).replace(" ", "")
