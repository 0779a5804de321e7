"""Many finished adapters on one base, of any method and rank; each row of a batch names its adapter or none."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rankwise.adaptation import Adaptation
from rankwise.adapter import is_adapted
from rankwise.banked import BankedLayer, Rows
from rankwise.base_layers import kind_of
from rankwise.errors import ConfigError, StateError, nearest
from rankwise.finished import Finished, as_lora, check_finished, finish, read_finished, weighted_sum
from rankwise.io import folder as files
from rankwise.io.sources import Source
from rankwise.plain import Plain
from rankwise.surgery import owners

# what a forward call names the rows by; the first of these that it is given is counted
INPUTS = (
    *("input_ids", "decoder_input_ids", "inputs_embeds", "decoder_inputs_embeds"),
    *("pixel_values", "input_features", "input_values"),
)
TIME_FIRST = ("xlnet", "fsmt")  # hand their layers (tokens, rows, width): no telling which row is whose


class Bank:
    """`with bank.rows(["news", None, "law"]): model(**batch)`. Outside such a block the model is its base.

    The model keeps its modules and its parameters: the bank hooks into their calls. Adapters may be added, removed and
    replaced at any time. One thread at a time.
    """

    def __init__(self, model: nn.Module) -> None:
        """Raises StateError if the model is adapted, or lays its batches out so that rows cannot be told apart."""
        config = vars(model).get("config")
        if config is not None and config.model_type in TIME_FIRST:
            raise StateError(f"a {config.model_type} model puts tokens before rows, so rows cannot have own adapters.")
        self.model = model
        _check_plain(model)
        self._adapters: dict[str, Finished] = {}
        self._layers: dict[nn.Module, BankedLayer] = {}
        self._rows: Rows | None = None
        self._handle = model.register_forward_pre_hook(self._before, with_kwargs=True)

    @property
    def names(self) -> list[str]:
        """The adapters in the bank."""
        return list(self._adapters)

    def add(self, name: str, source: Source | Adaptation, *, revision: str | None = None) -> None:
        """Take in a saved adapter, of any format that `load` reads, or a copy of a live adaptation of another instance
        of the base.

        Raises ConfigError for a name that is taken, FolderError or StateError for an adapter that does not fit.
        """
        if not name or name in self._adapters:
            raise ConfigError(f"name={name!r} is {'taken; replace() it, or' if name else 'empty;'} take another one.")
        self._put(name, self._finished(source, revision))

    def replace(self, name: str, source: Source | Adaptation, *, revision: str | None = None) -> None:
        """Put another adapter in the named one's place, whole or not at all, also inside a `rows` block."""
        self._check_known([name])
        self._put(name, self._finished(source, revision))

    def remove(self, name: str) -> None:
        """Let an adapter go. Raises StateError while a `rows` block uses it."""
        self._check_known([name])
        if self._rows is not None and name in self._rows.names:
            raise StateError(f"{name!r} is used by the rows of this block; leave the block first, or replace it.")
        del self._adapters[name]
        self._drop(name)

    def combine(self, name: str, weights: Mapping[str, float], *, trained_of: str | None = None) -> None:
        """Add Σ w Δ of adapters in the bank as one more, exactly: their ranks stand side by side.

        Heads have no such sum: where adapters trained some, `trained_of` names the adapter whose heads it takes.
        """
        if not name or name in self._adapters:
            raise ConfigError(f"name={name!r} is {'taken' if name else 'empty'}; take another one for the sum.")
        if not weights:
            raise ConfigError("weights is empty; give {name: weight} of adapters in the bank.")
        odd = {n: w for n, w in weights.items() if not math.isfinite(w)}
        if odd:
            raise ConfigError(f"weights={odd}: a sum takes finite weights.")
        self._check_known([*weights, *([] if trained_of is None else [trained_of])])
        with_heads = [n for n in weights if self._adapters[n].trained]
        if with_heads and trained_of is None:
            raise ConfigError(f"{with_heads} trained heads, which cannot be added. Say whose to take: trained_of=...")
        parts: dict[str, list[tuple[Plain, float]]] = {}
        for source, weight in weights.items():
            for path, part in self._adapters[source].layers.items():
                parts.setdefault(path, []).append((part, weight))
        trained = {} if trained_of is None else self._adapters[trained_of].trained
        self._put(name, Finished({path: weighted_sum(found) for path, found in parts.items()}, trained))

    def save(self, name: str, path: str | Path) -> None:
        """Write an adapter of the bank as a native LoRA folder, which `rankwise.load` and the commands read."""
        self._check_known([name])
        files.write(Path(path), as_lora(self._adapters[name], files.describe_base(self.model)))

    @contextmanager
    def rows(self, names: Sequence[str | None], *, copies: int = 1) -> Iterator[None]:
        """Within the block, row i of every batch goes through the adapter `names[i]`, or through the base for None.

        For `generate` with beams or several returned sequences, which copies each row so many times, say `copies`.
        A batch of another number of rows raises StateError, a name that is not in the bank ConfigError.
        """
        if isinstance(names, str) or not names:
            raise ConfigError(f"rows={names!r}: give a list with one name, or None, for each row of the batch.")
        if copies < 1:
            raise ConfigError(f"copies={copies} of each row are not possible; 1 is every row once.")
        self._check_known([name for name in names if name is not None])
        _check_plain(self.model)
        before = self._rows
        self._select(Rows(tuple(names), copies))
        try:
            yield
        finally:
            self._select(before)

    def close(self) -> None:
        """Take the bank's hooks off: the model has no trace of it. Nothing can be asked of the bank any more."""
        for name in self.names:
            self._drop(name)
        self._adapters.clear()
        self._handle.remove()

    def __repr__(self) -> str:
        told = [f"{n}: {sum(p.rank for p in a.layers.values())} ranks" for n, a in self._adapters.items()]
        return "\n".join([f"{len(told)} adapters on one {type(self.model).__name__}", *told])

    def _finished(self, source: Source | Adaptation, revision: str | None) -> Finished:
        if not isinstance(source, Adaptation):
            return read_finished(source, self.model, revision)
        adapter = finish(source)
        check_finished(adapter, self.model)
        return adapter

    def _put(self, name: str, adapter: Finished) -> None:
        modules = {path: self.model.get_submodule(path) for path in adapter.layers}
        trained: dict[nn.Module, dict[str, Tensor]] = {}
        for parameter, (module, own) in self._owners(adapter).items():
            trained.setdefault(module, {})[own] = adapter.trained[parameter]
        paths = {module: path for path, module in self.model.named_modules()}
        parts = {modules[path]: part for path, part in adapter.layers.items()}
        self._drop(name)
        for module in dict.fromkeys([*parts, *trained]):
            if module not in self._layers:
                self._layers[module] = BankedLayer(paths[module], module)
                self._layers[module].rows = self._rows
            self._layers[module].put(name, parts.get(module), trained.get(module, {}))
        self._adapters[name] = adapter

    def _owners(self, adapter: Finished) -> dict[str, tuple[nn.Module, str]]:
        """Where the parameters lie that the adapter trained in full. Raises StateError where rows cannot differ."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        found = owners(self.model, {name: parameters[name] for name in adapter.trained})
        for name, (module, _) in found.items():
            holders = sum(parameters[name] is p for m in self.model.modules() for p in m._parameters.values())
            if holders > 1 or not (kind_of(module) or isinstance(module, nn.LayerNorm | nn.Embedding)):
                where = "several modules" if holders > 1 else f"a {type(module).__name__}"
                raise StateError(
                    f"the adapter trained {name} in full, which {where} of the model holds: rows cannot have their "
                    "own there. Linear layers, layer norms and embeddings of one module can."
                )
        return found

    def _drop(self, name: str) -> None:
        for module, layer in list(self._layers.items()):
            layer.drop(name)
            if layer.empty:
                layer.release()
                del self._layers[module]

    def _select(self, rows: Rows | None) -> None:
        self._rows = rows
        for layer in self._layers.values():
            layer.rows = rows

    def _check_known(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._adapters:
                hint = nearest(name, self._adapters) if isinstance(name, str) else ""
                raise ConfigError(f"the bank has no adapter {name!r}; it has {self.names}.{hint}")

    def _before(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Refuse a batch that has not one row for each name, or `copies` of it."""
        if self._rows is None:
            return
        inputs = [*(named.get(name) for name in INPUTS), *given]
        size = next((t.shape[0] for t in inputs if isinstance(t, Tensor) and t.ndim), None)
        count = len(self._rows.names)
        if size not in (None, count, count * self._rows.copies):
            raise StateError(
                f"the batch has {size} rows, and bank.rows names {count}"
                + (f" with {self._rows.copies} copies of each. " if self._rows.copies > 1 else ". ")
                + "Name one adapter, or None, for each row; where generate copies rows for beams or returned "
                "sequences, say bank.rows(names, copies=...)."
            )


def _check_plain(model: nn.Module) -> None:
    if is_adapted(model):
        raise StateError(
            "the model is adapted: a bank holds finished adapters on a plain base. Undo or merge it first."
        )
