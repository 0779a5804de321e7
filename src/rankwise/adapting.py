"""`adapt` and `load`: from a plain model to an adapted one."""

from typing import Any

from torch import nn

from rankwise import compiling
from rankwise.adaptation import Adaptation
from rankwise.adapter import Installed, Method
from rankwise.errors import StateError
from rankwise.io import fitting, peft_objects, sources


def adapt(model: nn.Module, method: Method | Any) -> Adaptation:
    """Freeze `model` and put the method's adapters into it, in place: the model is changed whole, or not at all.

    The model keeps its class and, until training moves it, its outputs bit for bit. Build the optimizer afterwards,
    from `adaptation.parameters()`. `method` may be a config of PEFT's: the first of `adaptation.notes` says what its
    fields became.

    Raises TargetError if targets or ranks do not fit the model, StateError if it is adapted already or its weights are
    elsewhere.
    """
    model = compiling.inside(model)
    method, installed = peft_objects.install(model, method)
    _check_loaded(installed)
    return Adaptation(model, method, installed)


def load(
    model: nn.Module,
    path: sources.Source,
    *,
    method: Method | str | None = None,
    revision: str | None = None,
    resume: bool = True,
) -> Adaptation:
    """Put a saved adapter into `model`: a native folder, PEFT's, a `Loralib` checkpoint or, where no folder has that
    name, the hub's "user/name" in its `revision`. With `resume`, training continues where it was saved; without, and
    always with another `method`, a new run starts from the saved update.

    Raises FolderError, the model unchanged, if it is broken or of another model; ConfigError if `method` cannot be it.
    """
    model = compiling.inside(model)
    path, saved, notes = sources.opened(path, method, model, revision)
    fitting.check_fits(path, saved, model)
    installed = saved.method.install_saved(model, list(saved.layers), saved.trained)
    _check_loaded(installed)
    installed.notes = [*notes, *installed.notes]
    adaptation = Adaptation(model, saved.method, installed)
    try:
        adaptation._take(path, saved, resume=resume)
    except BaseException:
        adaptation.undo()
        raise
    return adaptation


def _check_loaded(installed: Installed) -> None:
    """Raise StateError, with the adapters taken out again, if a layer has no values to be adapted."""
    absent = [name for name, adapter in installed.adapters.items() if adapter.live.is_meta]
    if absent:
        installed.undo()
        raise StateError(
            f"{len(absent)} of {len(installed.adapters)} layers have no weights here, {absent[0]} first: they were not "
            "loaded, or are offloaded to another device or the disk. Load the model onto the devices that it trains on."
        )
