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

    Raises StateError for a parameter that no such module can hold.
    """
    names, found = set(trained), dict[str, Mapping[str, Tensor]]()
    for path, module in model.named_modules():
        own = {f"{path}.{name}" for name, _ in module.named_parameters()}
        if path and own and own <= names:
            found[path] = module.state_dict()
            names -= own
    for name in sorted(names):
        path = name.rpartition(".")[0]
        if not path or any(beginning in adapted for beginning in _beginnings(path)):
            raise StateError(
                f"{name} trained in full, and no module of its own can hold it in a LoRA folder. "
                "merge() the model instead."
            )
        found[path] = model.get_submodule(path).state_dict()
    return found


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
