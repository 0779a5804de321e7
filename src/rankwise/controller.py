"""What decides while a model trains. Imports torch and nothing else."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn


class Controller(ABC):
    """What changes during training besides the weights: ranks, masks, who is frozen.

    Called from the optimizer's step alone: `observe` when gradients are ready and weights have not moved, `act` right
    after they moved. Steps count from 0; the count is the controller's own and is saved with it.
    """

    step: int = 0

    @abstractmethod
    def observe(self, grad_scale: Tensor | None) -> None:
        """Take in this step's gradients, all finite; a parameter may have none.

        `grad_scale`: the loss scale () that they still carry, or None.
        """

    @abstractmethod
    def act(self) -> Sequence[Any]:
        """Carry out this step's decisions, count the step, and return the events for the history."""

    @property
    @abstractmethod
    def settled(self) -> bool:
        """Whether nothing will be decided any more: the run is in its final phase."""

    @abstractmethod
    def summary(self) -> dict[str, float]:
        """Where the decisions stand, in a few numbers for a progress bar; none of them waits for the device."""

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradients are scored."""

    def stopped(self) -> list[nn.Parameter]:
        """Those of `parameters()` that have stopped training; some may still be given gradients, to be dropped."""
        return []

    def restarted(self) -> Sequence[tuple[nn.Parameter, Tensor]]:
        """Parameters of which the step just set elements to 0, each with a mask of those that keep their moments."""
        return []

    @property
    def rebuilds(self) -> int:
        """At how many steps, at most, what is still to be decided changes what a compiled model was compiled for."""
        return 0

    def forecast(self) -> Sequence[Any] | None:
        """The decisions to come, as allocation.forecast.Forecast, from shapes and schedule alone: the parameters may be
        on the meta device. None when only the data can tell."""
        return None

    def keep(self, kept: Mapping[str, Tensor]) -> None:
        """The named layers were compacted to the given ranks: forget the state of the others."""
        if kept:
            raise AssertionError(f"{type(self).__name__} scores nothing that has dead ranks, yet some were removed")

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """{"tensors": {name: tensor}, "numbers": {name: plain value}}, all that a resumed run needs."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; called before the first step."""
