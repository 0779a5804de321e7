"""torch.compile: how an adapted model is known to be compiled, and the room that compiling it again takes.

Masks are values, so ranks may come and go in a compiled model. What trains, and which shapes there are, is compiled in:
freezing and compaction have the model compiled again. torch keeps 8 graphs of a function; past that it runs the model
uncompiled, with a warning only, or stops, with `fullgraph=True`. Neither may happen in mid-run.
"""

import sys
from collections.abc import Iterable

from torch import nn

from rankwise.adapter import LowRank
from rankwise.controller import Controller
from rankwise.errors import ScheduleError

MOST_REBUILDS = 6  # moments at which a method may freeze under torch.compile: each costs a compilation


def inside(model: nn.Module) -> nn.Module:
    """The model itself, where `model` is what torch.compile(model) gave."""
    while _is_wrapper(model):
        inner = model._modules["_orig_mod"]
        assert inner is not None
        model = inner
    return model


def _is_wrapper(module: nn.Module) -> bool:
    dynamo = sys.modules.get("torch._dynamo")  # whoever has compiled anything has imported it
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def prepare(model: nn.Module, layers: Iterable[LowRank], controller: Controller | None, *, told: bool = False) -> None:
    """If the model is compiled, check that the run's decisions can be followed, and make room for their graphs.

    Seen are `module.compile()` and compiled modules inside the model. `torch.compile(model)` leaves no mark on the
    model: the caller is `told` of it, or a layer has been traced. Raises ScheduleError.
    """
    marked = sum(m._compiled_call_impl is not None or _is_wrapper(m) for m in model.modules())
    regions = marked or int(told or any(layer.traced for layer in layers))
    if controller is None or not regions:
        return
    if controller.rebuilds > MOST_REBUILDS:
        raise ScheduleError(
            f"the model is compiled, and this schedule may freeze at {controller.rebuilds} moments. Each of them has "
            f"the model compiled again, which can be done {MOST_REBUILDS} times: set freeze_batches={MOST_REBUILDS} or "
            "fewer, or train without torch.compile."
        )
    _make_room(regions)


def _make_room(regions: int) -> None:
    """Let torch keep the graphs of a run that is compiled again MOST_REBUILDS times: each for training and for
    evaluation, and two of the base alone. Modules compiled on their own share the room if they are of one class.

    The limit is raised for this thread, and stays so: when the run is over its graphs are still there.
    """
    import torch._dynamo

    needed = (2 * (1 + MOST_REBUILDS) + 2) * regions
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, needed)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, needed)
