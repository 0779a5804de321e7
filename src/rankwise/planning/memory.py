"""The bytes of a run, of which all but the activations are counted, and the activations traced.

    peak = weights + state + copies + moments + gradients + activations

with T the tensors that train, in bytes: gradients = T, and moments = 2 T with AdamW. Activations are what the forward
and backward pass, or the optimizer's step, holds beyond that at its worst moment. While a pass fills up with
activations there are no gradients yet, unless they are those of an earlier pass; so the sum is the peak, and no more.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from rankwise.adapter import Installed
from rankwise.controller import Controller
from rankwise.planning.trace import peak_of_pass

MOMENTS = {"adamw": 2, "sgd": 0}  # tensors that the optimizer keeps for each that trains
TEMPORARIES = 2  # copies of one tensor that a step of AdamW makes, one tensor after the other


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the start of a run, when most trains."""

    weights: int
    """The model, adapters included."""
    state: int
    """What the method decides by: running means of importance."""
    copies: int
    """On the device: of what trains in full, as it was, which for low-rank methods are heads."""
    copies_on_cpu: int
    """As `copies`, in the processor's memory wherever the model is, and so no part of the peak of a GPU."""
    moments: int
    """Of the optimizer."""
    gradients: int
    activations: int | None
    """None for a model that reads no text, or whose pass depends on values and not on shapes alone."""
    adapter_file: int
    """The tensors of a saved adapter, as they are kept: in float32 unless a head is not."""

    @property
    def peak(self) -> int:
        """Without activations if they are not known. A run on the processor alone holds `copies_on_cpu` beside."""
        kept = self.weights + self.state + self.copies
        return kept + self.moments + self.gradients + (self.activations or 0)

    @property
    def checkpoint(self) -> int:
        """Of a run that can be resumed: the adapter, the method's state and the moments."""
        return self.adapter_file + self.state + self.moments


def memory_of(
    model: nn.Module,
    installed: Installed,
    controller: Controller | None,
    *,
    optimizer: str,
    loss: Callable[[], Tensor] | None,
    accumulates: bool,
) -> Memory:
    """Of a model on the meta device with a method in it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = size(trained)
    kept = [*model.parameters(), *model.buffers()]
    scores = [] if controller is None else controller.state_dict()["tensors"].values()
    copies, on_cpu = size(installed.originals.values()), installed.originals_on_cpu
    activations = None
    if loss is not None:
        step = TEMPORARIES * max((p.nbytes for p in trained), default=0) if MOMENTS[optimizer] else 0
        try:
            at_its_peak = peak_of_pass(model, loss) - (0 if accumulates else gradients)
            activations = max(at_its_peak, step)
        except (DataDependentOutputException, DynamicOutputShapeException):
            activations = None
    return Memory(
        weights=size(kept),
        state=size(scores),
        copies=0 if on_cpu else copies,
        copies_on_cpu=copies if on_cpu else 0,
        moments=MOMENTS[optimizer] * gradients,
        gradients=gradients,
        activations=activations,
        adapter_file=size([*trained, *(t for a in installed.adapters.values() for t in a.tensors().values())]),
    )


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes, of a shared tensor once."""
    return sum(t.nbytes for t in {id(t): t for t in tensors}.values())
