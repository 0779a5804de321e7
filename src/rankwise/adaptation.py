"""`Adaptation`: the façade over surgery, hook and files."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from rankwise import compiling, distributed, hook, merging, surgery
from rankwise.adapter import Installed, LowRank, Method
from rankwise.allocation.history import History, Started
from rankwise.base_layers import count
from rankwise.controller import Controller
from rankwise.errors import StateError
from rankwise.io import fitting, hub
from rankwise.io import folder as files
from rankwise.io.export import Exported, Layout, Wanted, export_lora
from rankwise.part import Part
from rankwise.summary import summary


class Adaptation:
    """A model under adaptation. Iterate nothing, search nothing: ask it."""

    def __init__(self, model: nn.Module, method: Method, installed: Installed) -> None:
        self.model, self.method = model, method
        self.adapters: dict[str, LowRank] = installed.adapters
        self.parts: dict[str, Part] = installed.parts
        self.tuned, self.notes = installed.tuned, installed.notes
        self._heads = surgery.owners(model, installed.trained)
        self.history = History()
        self.controller: Controller | None = None
        self.attachment: hook.Attachment | None = None
        self.merge_error: merging.MergeError | None = None
        self._undo, self._originals = installed.undo, installed.originals
        self._trains = [
            (a, t) for a in self._added().values() for t, p in a.own_parameters().items() if p.requires_grad
        ]
        self._run: dict[str, Any] | None = None
        self._saved_run: dict[str, Any] | None = None
        self._initial = self.count()
        if self.method.decides_while_training:
            hook.guard(self.adapters.values())

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The model's own parameters that train, by name: heads, and the `tuned` ones that the method is about."""
        return {name: module.get_parameter(own) for name, (module, own) in self._heads.items()}

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that train, or did until the method froze them: hand them to the optimizer."""
        return [a.get_parameter(t) for a, t in self._trains] + list(self.trained.values())

    def ranks(self) -> dict[str, int]:
        """Live rank by module name, as the last allocation left it."""
        return {name: int(adapter.live.sum()) for name, adapter in self.adapters.items()}

    def frozen(self) -> list[str]:
        """Names of the projections that trained and do not any more."""
        names = {added: name for name, added in self._added().items()}
        return [f"{names[added]}.{tensor}" for added, tensor in self._trains if not added.trains(tensor)]

    def count(self) -> int:
        """Trainable parameters that are alive: dead ranks and frozen projections do not count, trained heads do."""
        return sum(p.numel() for p in self.trained.values()) + sum(a.count() for a in self._added().values())

    def restore(self, path: str | Path, *, resume: bool = True) -> None:
        """Go to what `save` wrote of this very adaptation: weights, ranks, and with `resume` the state of its run.

        Build the optimizer afterwards, from `parameters()`: it lists what has frozen too, so that a saved optimizer
        state fits. Raises, with nothing changed, FolderError if the folder is broken or of another adaptation, and
        StateError while an optimizer is attached.
        """
        self._check_detached()
        self._take(Path(path), files.read(Path(path)), resume=resume)

    def start_from(self, path: str | Path) -> None:
        """Take the adapter tensors of a saved adapter as the start of a new run; heads and ranks stay as they are.

        Raises FolderError, with nothing changed, unless it is of the same method, layers and ranks.
        """
        fitting.start_layers(Path(path), self.method, self.adapters, self.parts)

    def _take(self, path: Path, saved: files.Saved, *, resume: bool) -> None:
        fitting.check_layers(path, saved, self.adapters, self.parts)
        fitting.check_tensors(path, saved, self.adapters, self.parts, self.trained)
        resumes = resume and saved.run is not None
        if resumes:
            fitting.check_run(path, saved, self.method, self.adapters)
        surgery.shrink(self.adapters, saved.held())
        fitting.copy_in(path, saved, self._added(), self.trained)
        self.controller = self._run = self._saved_run = None
        if resumes:
            self._saved_run = (saved.run or {}) | {"tensors": saved.state}
        surgery.freeze_only(self.adapters, saved.frozen if resumes else [], self.frozen())

    def disabled(self) -> AbstractContextManager[None]:
        """Within the block the model is its base, bit for bit, with its heads as they were before training."""
        return surgery.disabled(self._added(), self.trained, self._originals)

    @contextmanager
    def attached(
        self,
        optimizer: Any,
        total_steps: int | None = None,
        *,
        steps_per_epoch: int | None = None,
        history: str | Path | None = None,
        compiled: bool = False,
    ) -> Iterator["Adaptation"]:
        """Within the block, every real step of `optimizer` runs the method's decisions.

        `total_steps` counts optimizer steps of the whole run; `steps_per_epoch` is needed for spans stated in epochs;
        `history` is a JSON-lines file that takes the events. Valid for every method. `compiled` says that the model is
        called through `torch.compile(model)`, which leaves no mark on it and else is noticed at the first step.

        Raises StateError if the optimizer does not hold the adapters' parameters or one is attached already,
        ScheduleError if the schedule leaves no room in the run, or freezes more often than a compiled model can follow.
        """
        inner = hook.unwrapped(optimizer)
        if self.attachment is not None:
            raise StateError("an optimizer is attached already; leave its `with` block first.")
        if not self.parameters():
            raise StateError("nothing trains: the adapters were merged or taken out. Adapt the model again.")
        hook.check_holds(inner, [p for p in self._adapter_parameters() if p.requires_grad])
        distributed.check_run(self._adapter_parameters(), compacts=self.method.compacts)
        self._begin(total_steps, steps_per_epoch, None if history is None else Path(history), compiled)
        compactable = partial(surgery.check_compactable, self.adapters.values(), inner)
        attachment = hook.Attachment(
            inner,
            self.controller,
            self.history,
            layers=self.adapters.values(),
            names=self._names,
            steps=0 if self._run is None else self._run["steps"],
            total_steps=total_steps,
            check=partial(compiling.prepare, self.model, self.adapters.values(), self.controller),
            settle=hook.Settle(self.compact, compactable) if self.method.compacts else None,
        )
        with hook.hooked(attachment) as self.attachment:
            try:
                yield self
            finally:
                self._count_steps()
                self.attachment = None

    def compact(self, optimizer: Any = None) -> int:
        """Remove dead ranks from factors, gradients and the optimizer's moments; scale and outputs stay.

        Returns how many dead λ had grown back and were set to 0. The attached optimizer is taken when none is given.
        """
        if optimizer is None and self.attachment is not None:
            optimizer = self.attachment.optimizer
        distributed.check_compaction(self.model, inside_a_run=self.attachment is not None)
        controller = self.controller if self._saved_run is None else self._controller_of(self._saved_run)
        result = surgery.compact(self.adapters, None if optimizer is None else hook.unwrapped(optimizer))
        if controller is not None:
            controller.keep(result.kept)
        if controller is not None and self._saved_run is not None:
            self._saved_run |= controller.state_dict()
        return result.regrown

    def merge(
        self, *, dequantize: bool = False, dtype: torch.dtype | None = None, samples: Sequence[merging.Sample] = ()
    ) -> nn.Module:
        """Add every update to its weight, in float32 with one rounding (to `dtype`, if given), and give back the plain
        model, heads as trained. The adaptation holds nothing any more but `merge_error`, measured layer by layer and on
        `samples`, keyword arguments of the model, end to end. StateError: a base is quantised, and `dequantize` is off;
        or the method's trained model is no plain one.
        """
        self._check_detached()
        if self.method.cannot_merge is not None:
            raise StateError(f"{self.method.name} cannot be merged: {self.method.cannot_merge}. save() it instead.")
        distributed.refuse_split(self.model, "merging")
        how = merging.How(dequantize, dtype, samples)
        self.merge_error = merging.merge(self.model, self.adapters, self._take_out, how)
        return self.model

    def undo(self) -> nn.Module:
        """Take the adapters out: the original modules are back, with the values and `requires_grad` they had."""
        self._check_detached()
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self._originals[name])
        return self._take_out()

    def _take_out(self) -> nn.Module:
        self._undo()
        self.adapters, self.parts, self._heads, self.controller, self._trains = {}, {}, {}, None, []
        self.tuned, self.notes = frozenset(), []
        return self.model

    def save(self, path: str | Path) -> None:
        """Write the native folder: adapters, trained heads, settings, and the state that training continues from.

        Atomic: a crash leaves the old folder or the new one. In a group of processes the first one writes; under FSDP2
        all must call it, for each gives its part. Raises StateError after `merge` or `undo`.
        """
        if not self._added() and not self.trained:
            raise StateError("there is nothing to save: the adapters were merged or taken out.")
        self._count_steps()
        run, state = self._state_of_run()
        run_state = {"frozen": self.frozen(), "run": run, "state": state}
        saved = files.Saved.of(self.model, self.method, self.adapters, self.parts, self.trained, **run_state)
        files.write(Path(path), saved)

    def export(
        self,
        path: str | Path,
        *,
        layout: Layout = "portable",
        rank: int | None = None,
        heads: bool = False,
        base_model: str | None = None,
        revision: str | None = None,
    ) -> Exported:
        """Write a plain LoRA folder: "portable" for every engine, with one `rank` (None: the next that vLLM takes), or
        "compact" for PEFT. Dead ranks stay behind, trained heads too unless `heads`. `base_model` and `revision`: its
        id on the hub, and which of its states.

        Atomic. Raises StateError if nothing is low-rank here, ConfigError if `rank` is below the live ones.
        """
        if self.method.cannot_export is not None:
            raise StateError(f"{self.method.name} has no LoRA folder: {self.method.cannot_export}. save() it instead.")
        wanted = Wanted(layout=layout, rank=rank, heads=heads, base_model=base_model, revision=revision)
        return export_lora(Path(path), self.model, self.adapters, self.trained, wanted)

    def push_to_hub(self, hub_id: str, **settings: Unpack[hub.Upload]) -> str:
        """`save` to the hub as "user/name", with a card. Returns the commit's address; FolderError if refused."""
        return hub.push(hub_id, self.save, **settings)

    def __repr__(self) -> str:
        heads = [name for name in self.trained if name not in self.tuned]
        sizes = (self.count(), self._initial, count(self.model))
        what = (len(self.adapters), len(self.parts), len(self.tuned))
        return summary(self.method.name, what, sizes, heads, self.frozen(), self.notes)

    def _names(self) -> dict[nn.Parameter, str]:
        own = {p: f"{n}.{t}" for n, a in self._added().items() for t, p in a.own_parameters().items()}
        return own | {p: name for name, p in self.trained.items()}

    def _adapter_parameters(self) -> list[nn.Parameter]:
        return [p for added in self._added().values() for p in added.own_parameters().values()]

    def _added(self) -> dict[str, LowRank | Part]:
        return {**self.adapters, **self.parts}

    def _state_of_run(self) -> tuple[dict[str, Any] | None, dict[str, torch.Tensor]]:
        """What a run goes on from, and its tensors; of one that was loaded and has not gone on, what was loaded."""
        if self._saved_run is not None:
            return {n: v for n, v in self._saved_run.items() if n != "tensors"}, self._saved_run["tensors"]
        if self._run is None:
            return None, {}
        state = {"numbers": {}, "tensors": {}} if self.controller is None else self.controller.state_dict()
        return self._run | {"numbers": state["numbers"]}, state["tensors"]

    def _controller_of(self, run: dict[str, Any]) -> Controller | None:
        """Of a run of that length, where it stands."""
        if run["total_steps"] is None:
            return None
        controller = self.method.controller(self.adapters, run["total_steps"], run["steps_per_epoch"])
        if controller is not None and "numbers" in run:
            controller.load_state_dict(run)
        return controller

    def _check_detached(self) -> None:
        if self.attachment is not None:
            raise StateError("an optimizer is attached; leave its `with` block before taking or changing the adapters.")

    def _begin(
        self, total_steps: int | None, steps_per_epoch: int | None, history: Path | None, compiled: bool
    ) -> None:
        """Begin a run, or go on with the one that was begun here or saved."""
        if total_steps is None and self.method.decides_while_training:
            raise StateError(f"{self.method.name} spreads its decisions over the run: attached() needs total_steps.")
        begun = self._run or self._saved_run
        if begun is not None:
            hook.check_continues(begun, total_steps, steps_per_epoch if self.method.decides_while_training else None)
            steps_per_epoch = begun["steps_per_epoch"] or steps_per_epoch
        steps = 0 if begun is None else int(begun["steps"])
        run = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch, "steps": steps}
        if self._run is None:
            self.controller = self._controller_of((self._saved_run or {}) | run)
        compiling.prepare(self.model, self.adapters.values(), self.controller, told=compiled)
        if self._run is None:
            self.history.write_to(history if distributed.is_first() else None, steps)
            if steps == 0:
                ranks = {name: adapter.rank for name, adapter in self.adapters.items()}
                self.history.add(Started(0, self.method.name, total_steps, ranks))
        elif history is not None and distributed.is_first():
            self.history.move_to(history)
        self._run, self._saved_run = run, None

    def _count_steps(self) -> None:
        if self._run is not None and self.attachment is not None:
            self._run["steps"] = self.attachment.steps
