"""AdaLoRA, then AFLoRA's freezing on what it kept:  Δ = (α/r₀) P diag(λ) Q     P (d_out, r), λ (r,), Q (r, d_in).

First the budget: triplets are dropped until b_T are left, as in AdaLoRA, and the choice is fixed at T − t_f. Then the
freezing: of the matrices P and Q of all layers, each on its own, the share

    r(t) = 1 − u³        u = 1 − (t − (T − t_f)) / (t_f − freeze_cooldown)

with the lowest score, mean Ī · Ū of I = |∂L/∂w| over the ranks that live, is frozen. λ trains to the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from rankwise.adapter import LowRank
from rankwise.allocation.forecast import Forecast, together
from rankwise.allocation.history import Event
from rankwise.allocation.importance import Signal
from rankwise.allocation.schedule import Phases, Span, parse_span, steps_of
from rankwise.controller import Controller
from rankwise.errors import ConfigError, FolderError, ScheduleError
from rankwise.methods.adalora import TripletBudget
from rankwise.methods.budget import BudgetController
from rankwise.methods.freezing import FreezingController, FreezingRules


@dataclass(frozen=True, kw_only=True)
class FreezingAdaLoRA(TripletBudget):
    """AdaLoRA that freezes singular vectors when its budget is spent and they have stopped learning."""

    name: ClassVar[str] = "freezing-adalora"
    learning_rate: ClassVar[float] = 5e-3

    freeze_cooldown: Span = 0.2
    """Steps at the end during which every P and Q is frozen; shorter than `cooldown`."""
    freeze_every: Span = 10
    """Steps between freezing decisions, and the window over which gradients are averaged."""
    freeze_signal: Signal = "gradient"
    """I of the freezing score: |g|, |w·g| ("sensitivity") or |g/w| ("relative_gradient")."""
    freeze_batches: int | None = None
    """Freeze at no more than this many moments, evenly spaced, so that a compiled model is rebuilt that often."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for setting in ("freeze_cooldown", "freeze_every"):
            parse_span(vars(self)[setting], setting)
        if self.freeze_batches is not None and self.freeze_batches < 1:
            raise ConfigError(f"freeze_batches={self.freeze_batches}: it takes at least one moment to freeze.")

    def controller(
        self, adapters: Mapping[str, LowRank], total_steps: int, steps_per_epoch: int | None
    ) -> "BudgetThenFreezing":
        phases = self.phases(total_steps, steps_per_epoch)
        cooldown = steps_of(self.freeze_cooldown, "freeze_cooldown", total_steps, steps_per_epoch)
        every = steps_of(self.freeze_every, "freeze_every", total_steps, steps_per_epoch)
        if cooldown >= phases.cooldown:
            raise ScheduleError(
                f"freeze_cooldown={cooldown} leaves none of the cooldown={phases.cooldown} steps of the budget to "
                "freeze anything in. Shorten freeze_cooldown or lengthen cooldown."
            )
        projections = {f"{n}.{t}": (a, t) for n, a in adapters.items() for t in ("P", "Q")}
        rules = FreezingRules(signal=self.freeze_signal, batches=self.freeze_batches)
        return BudgetThenFreezing(
            self.budget_controller(adapters, phases, self.regulariser(adapters)),
            FreezingController(projections, rules, Phases(total_steps, phases.finish, cooldown, every)),
        )


class BudgetThenFreezing(Controller):
    """A budget and a freezing, each with its own schedule and state."""

    def __init__(self, budget: BudgetController, freezing: FreezingController) -> None:
        self.budget, self.freezing = budget, freezing

    @property
    def settled(self) -> bool:
        return self.budget.settled and self.freezing.settled

    def summary(self) -> dict[str, float]:
        return self.budget.summary() | self.freezing.summary()

    def parameters(self) -> list[nn.Parameter]:
        """Those of the budget, then those of the freezing: a matrix is listed for each of its two scores."""
        return self.budget.parameters() + self.freezing.parameters()

    def stopped(self) -> list[nn.Parameter]:
        return self.freezing.stopped()

    @property
    def rebuilds(self) -> int:
        return self.freezing.rebuilds

    def forecast(self) -> list[Forecast]:
        """First ranks die, then projections freeze, dead ranks and all."""
        dying = self.budget.forecast()
        dead = dying[-1] if dying else Forecast(self.step, 0, 0, 0)
        total = sum(p.numel() for p in self.budget.parameters())
        return [*dying, *(together(dead, frozen, total) for frozen in self.freezing.forecast())]

    def observe(self, grad_scale: Tensor | None) -> None:
        self.freezing.observe(grad_scale)  # first: its score is of the task's gradient, without the penalty's
        self.budget.observe(grad_scale)

    def act(self) -> Sequence[Event]:
        events = [*self.budget.act(), *self.freezing.act()]
        self.step += 1
        return events

    def keep(self, kept: Mapping[str, Tensor]) -> None:
        self.budget.keep(kept)
        self.freezing.keep(kept)

    def state_dict(self) -> dict[str, Any]:
        """One state, in which positions are those of `parameters()`."""
        budget, freezing = self.budget.state_dict(), self.freezing.state_dict()
        first = len(self.budget.parameters())
        numbers = freezing["numbers"]
        return {
            "tensors": budget["tensors"] | _moved(freezing["tensors"], first),
            "numbers": budget["numbers"]
            | {"frozen": [first + i for i in numbers["frozen"]], "seen": [0] * first + numbers["seen"]},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        tensors, numbers = state["tensors"], state["numbers"]
        first = len(self.budget.parameters())
        own = {n: t for n, t in tensors.items() if _position(n) < first}
        others = {n: t for n, t in tensors.items() if _position(n) >= first}
        frozen = [i - first for i in numbers["frozen"]]
        if len(numbers["seen"]) <= first or min(frozen, default=0) < 0:
            raise FolderError("the saved run is not what rankwise writes: it freezes what cannot freeze.")
        self.budget.load_state_dict({"tensors": own, "numbers": numbers})
        self.freezing.load_state_dict(
            {
                "tensors": _moved(others, -first),
                "numbers": {"step": numbers["step"], "frozen": frozen, "seen": numbers["seen"][first:]},
            }
        )
        self.step = numbers["step"]


def _position(name: str) -> int:
    return int(name.rpartition(".")[2])


def _moved(tensors: Mapping[str, Tensor], by: int) -> dict[str, Tensor]:
    """The tensors "kind.i" as "kind.(i + by)"."""
    return {f"{n.rpartition('.')[0]}.{_position(n) + by}": t for n, t in tensors.items()}
