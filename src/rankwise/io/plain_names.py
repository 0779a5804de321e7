"""Which names in a config mean exactly the layers and heads of an adaptation: readers match a name by its ending."""

import re
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, nn

from rankwise.errors import StateError
from rankwise.methods.low_rank import endings


def targets(model: nn.Module, paths: Collection[str]) -> list[str] | str:
    """`target_modules` that match the layers at `paths` and no other module: last components if they do, else whole
    paths, else one regular expression."""
    names = [n for n, _ in model.named_modules() if not any(e in paths and e != n for e in _beginnings(n))]
    for candidates in ({path.rpartition(".")[2] for path in paths}, set(paths)):
        if {n for n in names if any(ending in candidates for ending in endings(n))} == set(paths):
            return sorted(candidates)
    return "|".join(re.escape(path) for path in paths)


def _beginnings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:to]) for to in range(1, len(parts) + 1)]


def modules_to_save(
    model: nn.Module, trained: Iterable[str], adapted: Collection[str]
) -> dict[str, Mapping[str, Tensor]]:
    """The largest modules of which every parameter trained, with their tensors; one that trained in part comes whole.
    A tied parameter comes with each of the modules that have it, for readers give each a copy of its own.

    Raises StateError for a parameter that no such module can hold.
    """
    whole, rest = _whole_modules(model, trained)
    found: dict[str, Mapping[str, Tensor]] = {path: _copied(model.get_submodule(path)) for path in whole}
    for name in sorted(rest):
        path = name.rpartition(".")[0]
        inside = any(other.startswith(f"{path}.") for other in adapted)
        if not path or inside or any(beginning in adapted for beginning in _beginnings(path)):
            raise StateError(
                f"{name} trained in full, and no module of its own can hold it in a LoRA folder. "
                "merge() the model instead."
            )
        found[path] = _copied(model.get_submodule(path))
    return found


def in_part(model: nn.Module, trained: Iterable[str]) -> bool:
    """Whether something goes with the trained parameters, as `modules_to_save` has it, that did not train."""
    whole, rest = _whole_modules(model, trained)
    modules = [model.get_submodule(path) for path in whole]
    return bool(rest) or any(module.state_dict().keys() - _own(module) for module in modules)


def _whole_modules(model: nn.Module, trained: Iterable[str]) -> tuple[list[str], set[str]]:
    """The largest modules that trained whole, and the parameters that are in none of them."""
    names, found = set(with_ties(model, trained)), []
    for path, module in model.named_modules():
        own = {f"{path}.{name}" for name in _own(module)}
        if path and own and own <= names:
            found.append(path)
            names -= own
    return found, names


def with_ties(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The names, and where the model has other ones for the same parameters, those too."""
    given, parameters = list(names), dict(model.named_parameters(remove_duplicate=False))
    wanted = {parameters[name] for name in given if name in parameters}
    return list(dict.fromkeys([*given, *(name for name, parameter in parameters.items() if parameter in wanted)]))


def _own(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters(remove_duplicate=False)}


def _copied(module: nn.Module) -> dict[str, Tensor]:
    """A file can hold no two names of one tensor."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def refuse_shared(model: nn.Module, paths: Collection[str]) -> None:
    """Raise StateError for an adapted layer that stands in two places: a reader would adapt only one of them."""
    adapted = {model.get_submodule(path): path for path in paths}
    holders: dict[nn.Module, int] = {}
    for parent in model.modules():
        for child in set(parent.children()) & adapted.keys():
            holders[child] = holders.get(child, 0) + sum(c is child for c in parent._modules.values())
    shared = [adapted[module] for module, count in holders.items() if count > 1]
    if shared:
        raise StateError(
            f"{shared[0]} is one layer in several places, which a LoRA folder cannot say. merge() the model instead."
        )
