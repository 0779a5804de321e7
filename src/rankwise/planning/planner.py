"""`plan`: from a config and a method to a plan."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, get_args

import torch
from torch import nn

from rankwise.adapter import Installed, Method
from rankwise.allocation.schedule import Epochs
from rankwise.base_layers import count, sizes
from rankwise.controller import Controller
from rankwise.errors import ConfigError, TargetError
from rankwise.methods.low_rank import LowRankMethod
from rankwise.methods.vera import MOST_RANK
from rankwise.planning.course import Course
from rankwise.planning.memory import Memory, memory_of
from rankwise.planning.plan import Pass, Plan, Precision
from rankwise.planning.trace import autocast
from rankwise.planning.weightless import Source, loss_of, model_of, recompute_activations

LONG_RUN = 10**6  # steps, in which every method's usual schedule has room


def plan(
    model: Source,
    method: Method,
    *,
    batch_size: int = 16,
    sequence_length: int = 256,
    gradient_accumulation: int = 1,
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
    task: str | None = None,
    precision: Precision = "fp32",
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    dtype: torch.dtype | None = None,
    device_memory: int | str | None = None,
) -> Plan:
    """What adapting `model` (a config, hub id, folder or model) with `method` will train, hold and write.

    Nothing is loaded: the model is built without weights. `total_steps` optimizer steps give the schedule's course; all
    else is told without them too. `dtype` is that of the base weights (default: what the config says), `precision` the
    autocast type. `device_memory` is a number of bytes, or "24GB", and asks whether the run fits, and up to which rank.

    Raises ConfigError or TargetError for what does not fit the model, ScheduleError for a schedule without room.
    """
    run = Pass(
        batch_size=batch_size,
        sequence_length=sequence_length,
        gradient_accumulation=gradient_accumulation,
        precision=precision,
        optimizer=optimizer,
        gradient_checkpointing=gradient_checkpointing,
    )
    device = None if device_memory is None else parse_bytes(device_memory)
    bare, task = model_of(model, task, dtype)
    total = count(bare)
    if gradient_checkpointing:
        recompute_activations(bare)
    trial = _Trial(bare, task, run, total_steps, steps_per_epoch)
    with trial.installed(method) as (installed, controller):
        made = Plan(
            model=type(bare).__name__,
            task=task,
            method=method,
            layers={name: adapter.rank for name, adapter in installed.adapters.items()},
            notes=installed.notes,
            total=total,
            heads=heads_of(installed),
            trainable=trial.course(method, controller),
            memory=trial.memory(installed, controller),
            run=run,
            device_memory=device,
            largest_rank=None,
        )
        most = _most_rank(method, installed)
    if device is None:
        return made
    return replace(made, largest_rank=_largest_rank(method, trial, device, made.memory.peak, most))


def course_of(
    bare: nn.Module, method: Method, *, total_steps: int, steps_per_epoch: int | None = None
) -> tuple[Course, int]:
    """What trains over a run in a model without weights, and how many of it are heads; as `plan`, but no bytes.

    Raises what `plan` raises of a method that does not fit.
    """
    trial = _Trial(bare, None, Pass(), total_steps, steps_per_epoch)
    with trial.installed(method) as (installed, controller):
        return trial.course(method, controller), heads_of(installed)


def heads_of(installed: Installed) -> int:
    """Parameters that train in full beside what the method is about."""
    return sum(p.numel() for n, p in installed.trained.items() if n not in installed.tuned)


class _Trial:
    """One bare model and one run, to try methods on."""

    def __init__(
        self, bare: nn.Module, task: str | None, run: Pass, total_steps: int | None, steps_per_epoch: int | None
    ) -> None:
        self.bare, self.run = bare, run
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        loss = loss_of(bare, task, run.batch_size, run.sequence_length)
        self.loss = None if loss is None else self._cast(loss)

    def _cast(self, loss: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def cast() -> torch.Tensor:
            with autocast("cpu", self.run.precision):
                return loss()

        return cast

    @contextmanager
    def installed(self, method: Method) -> Iterator[tuple[Installed, Controller | None]]:
        """Within the block the method is in the model. Without `total_steps` the controller is that of another run, and
        good for counting its state alone, which is the same in all runs."""
        installed = method.install(self.bare)
        try:
            if self.total_steps is None:
                controller = _usually_scheduled(method).controller(installed.adapters, LONG_RUN, None)
            else:
                controller = method.controller(installed.adapters, self.total_steps, self.steps_per_epoch)
            yield installed, controller
        finally:
            installed.undo()

    def memory(self, installed: Installed, controller: Controller | None) -> Memory:
        run = self.run
        return memory_of(
            self.bare,
            installed,
            controller,
            optimizer=run.optimizer,
            loss=self.loss,
            accumulates=run.gradient_accumulation > 1,
        )

    def course(self, method: Method, controller: Controller | None) -> Course:
        start = sum(p.numel() for p in self.bare.parameters() if p.requires_grad)
        untold = method.decides_while_training and self.total_steps is None
        decisions = None if untold else [] if controller is None else controller.forecast()
        return Course(start, self.total_steps, decisions)


def _usually_scheduled(method: Method) -> Method:
    """With the spans that are the method's defaults."""
    spans: dict[str, Any] = {f.name: f.default for f in fields(method) if Epochs in get_args(f.type)}
    return replace(method, **spans)


def _most_rank(method: Method, installed: Installed) -> int:
    """The highest rank that the method takes for all layers; 0 for one that adapts none."""
    if isinstance(method, LowRankMethod) and not method.bounded_rank:
        return MOST_RANK
    return min((min(sizes(a.base)) for a in installed.adapters.values()), default=0)


def _largest_rank(method: Method, trial: _Trial, device: int, peak: int, most: int) -> int | None:
    """Memory grows with the rank in a straight line, so few trials are needed to find where it crosses the device's."""
    if "rank" not in {f.name for f in fields(method)}:
        return None
    peaks = {vars(method)["rank"]: peak}
    low, high = 0, most + 1
    while True:
        for rank, peak in peaks.items():
            low, high = (max(low, rank), high) if peak <= device else (low, min(high, rank))
        if high - low <= 1:
            return low if low in peaks else None
        rank = _crossing(peaks, device, low, high)
        try:
            with trial.installed(replace(method, rank=rank)) as given:  # type: ignore[call-arg]
                peaks[rank] = trial.memory(*given).peak
        except (ConfigError, TargetError):  # lower than another setting allows
            low = max(low, rank)


def _crossing(peaks: dict[int, int], device: int, low: int, high: int) -> int:
    """The rank strictly between `low` and `high` where the line through two trials reaches the device's memory."""
    if len(peaks) == 1:
        [rank] = peaks
        guess = 2 * rank
    else:
        (a, peak_a), (b, peak_b) = sorted(peaks.items(), key=lambda trial: abs(trial[1] - device))[:2]
        slope = (peak_b - peak_a) / (b - a)
        guess = int(a + (device - peak_a) / slope) if slope > 0 else high - 1
    return min(max(guess, low + 1), high - 1)


_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(amount: int | str) -> int:
    """24_000_000_000, "24GB" or "24 GiB". Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(amount))
    if match is None or match[2].upper() not in _UNITS or not float(match[1]) > 0:
        raise ConfigError(
            f"device_memory={amount!r} is no amount of memory. Write '24GB', '24GiB' or a number of bytes."
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])
