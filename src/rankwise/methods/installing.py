"""Installation of the methods that are not low-rank: parts put into a model, and parameters of its own that train."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.adapter import Installed, Method, is_adapted
from rankwise.errors import StateError, TargetError
from rankwise.part import Part
from rankwise.targets import ModelView, trained_modules


def plain_view(model: nn.Module) -> ModelView:
    """Raises StateError if the model is adapted already."""
    if is_adapted(model):
        raise StateError("the model is adapted already. Undo, merge or reload it before adapting it again.")
    return ModelView(model)


def parameters_under(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters in the named modules, or so named themselves; a tied one once."""
    found: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if any(name == n or name.startswith(n + ".") for n in names):
            found.setdefault(parameter, name)
    return {name: parameter for parameter, name in found.items()}


@dataclass(frozen=True)
class Placed:
    """A part that was made, and the module it is to hang in."""

    path: str  # of the module, "" for the model itself
    module: nn.Module
    part: Part

    @property
    def name(self) -> str:
        """Of the part, once it hangs there."""
        return f"{self.path}.{self.part.label}" if self.path else self.part.label


class Tuned(Part):
    """Marks a model of which parameters of its own train; it computes nothing."""

    label: ClassVar[str] = "adapter_mark"

    def attach(self, place: nn.Module) -> list[RemovableHandle]:
        return []


@dataclass(frozen=True, kw_only=True)
class BaselineMethod(Method):
    """Settings common to the methods that are not low-rank."""

    also_train: str | list[str] = "auto"
    """Modules trained in full and saved with the adapter: "auto" (task heads, freshly initialised linears) or names."""

    def install(self, model: nn.Module) -> Installed:
        """Check everything, make every part, then put them in.

        Raises StateError if the model is adapted already, TargetError if the method does not fit it.
        """
        view = plain_view(model)
        return self._install(view, parameters_under(model, trained_modules(view, self.also_train)))

    def install_saved(self, model: nn.Module, layers: Sequence[str], trained: list[str]) -> Installed:
        """As `install`, with exactly the trained parameters that a saved adapter lists."""
        return self._install(plain_view(model), parameters_under(model, trained))

    @abstractmethod
    def _install(self, view: ModelView, trained: Mapping[str, nn.Parameter]) -> Installed:
        """`trained`: the heads, or all that a saved adapter trained in full."""


@dataclass(frozen=True, kw_only=True)
class TuningMethod(BaselineMethod):
    """Trains parameters of the model itself."""

    cannot_export: ClassVar[str | None] = "it changes weights of the model itself, by updates that have no low rank"

    @abstractmethod
    def tuned(self, view: ModelView) -> dict[str, nn.Parameter]:
        """The parameters that train, by name. Raises TargetError where the model has none that could."""

    def _install(self, view: ModelView, trained: Mapping[str, nn.Parameter]) -> Installed:
        tuned, heads = self.tuned(view), parameters_under(view.model, trained_modules(view, self.also_train))
        own = {n: p for n, p in tuned.items() if n not in heads}
        others = {n: p for n, p in trained.items() if n not in own}
        return put_in(view.model, [Placed("", view.model, Tuned())], own, others)


@dataclass(frozen=True, kw_only=True)
class AddingMethod(BaselineMethod):
    """Adds parts beside the layers of the model."""

    cannot_merge: ClassVar[str | None] = "what it adds is computed beside the model's layers, and no weight can hold it"
    cannot_export: ClassVar[str | None] = "what it adds is no update of a weight"

    @abstractmethod
    def parts(self, view: ModelView) -> list[Placed]:
        """The parts, made and not yet in the model. Raises TargetError where the model has no place for them."""

    def _install(self, view: ModelView, trained: Mapping[str, nn.Parameter]) -> Installed:
        return put_in(view.model, self.parts(view), {}, trained)


def put_in(
    model: nn.Module,
    placed: Sequence[Placed],
    tuned: Mapping[str, nn.Parameter],
    heads: Mapping[str, nn.Parameter],
) -> Installed:
    """Freeze the model but for `tuned` and `heads`, and hang the parts in their places.

    Raises TargetError, with nothing changed, if a module has something of a part's name already.
    """
    taken = [place.name for place in placed if hasattr(place.module, place.part.label)]
    if taken:
        raise TargetError(f"the model has a {taken[0]!r} of its own, which is where the method's part would hang.")
    frozen_before = {p: p.requires_grad for p in model.parameters()}
    trained = {**tuned, **heads}
    originals = {name: _copy(parameter) for name, parameter in trained.items()}
    for parameter in frozen_before:
        parameter.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    handles = []
    for place in placed:
        place.part.train(place.module.training)
        place.module.add_module(place.part.label, place.part)
        handles += place.part.attach(place.module)

    def undo() -> None:
        for handle in handles:
            handle.remove()
        for place in placed:
            del place.module._modules[place.part.label]
        for parameter, required in frozen_before.items():
            parameter.requires_grad_(required)

    parts = {place.name: place.part for place in placed if not isinstance(place.part, Tuned)}
    return Installed({}, trained, originals, undo, parts=parts, tuned=frozenset(tuned), originals_on_cpu=True)


def _copy(parameter: nn.Parameter) -> Tensor:
    """On the CPU, for it may be the whole model; a parameter without values has none to copy."""
    values = parameter.detach()
    return values.clone() if values.is_meta else values.to("cpu", copy=True)
