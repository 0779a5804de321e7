"""A plan: what a run will train, hold and write; and how it is printed."""

from dataclasses import dataclass, fields
from io import StringIO
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rankwise.adapter import Method
from rankwise.errors import ConfigError
from rankwise.planning.course import Course, chart
from rankwise.planning.memory import MOMENTS, Memory

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward and backward pass: what activations depend on."""

    batch_size: int = 16
    sequence_length: int = 256
    gradient_accumulation: int = 1
    precision: Precision = "fp32"
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "sequence_length", "gradient_accumulation"):
            if vars(self)[name] < 1:
                raise ConfigError(f"{name}={vars(self)[name]}: a pass takes at least 1.")
        if self.optimizer not in MOMENTS:
            raise ConfigError(f"optimizer={self.optimizer!r} is none of {list(MOMENTS)}, whose memory is known.")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise ConfigError(f"precision={self.precision!r} is none of ['fp32', 'bf16', 'fp16'].")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will train, hold and write. Print it."""

    model: str
    """The class of the model."""
    task: str | None
    method: Method
    layers: dict[str, int]
    """Initial rank by adapted layer."""
    notes: list[str]
    """What the method left out, and why."""
    total: int
    """Parameters of the model before it is adapted."""
    heads: int
    """Those of `trainable` that train beside the adapters, in full."""
    trainable: Course
    memory: Memory
    run: Pass
    device_memory: int | None
    largest_rank: int | None
    """The largest rank at which the run fits on the device; None without a device, or where none fits."""

    @property
    def fits(self) -> bool | None:
        """Whether the peak is within the device's memory; None without a device."""
        return None if self.device_memory is None else self.memory.peak <= self.device_memory

    def __str__(self) -> str:
        console = Console(file=StringIO(), width=110, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip("\n")

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [_counts(self)]
        if self.trainable.decisions and self.trainable.total_steps:
            parts.append(Text(chart(self.trainable)))
        parts += [_bytes(self), Text(_assumptions(self))]
        if self.device_memory is not None:
            parts.append(Text(_verdict(self), style="bold"))
        return Group(*parts, *(Text(note) for note in self.notes))


def _counts(plan: Plan) -> Table:
    table = Table(title=f"{plan.method.name} on a {plan.model}", show_header=False, title_justify="left")
    ranks = sorted(set(plan.layers.values()))
    of_rank = f", of rank {'-'.join(str(r) for r in (ranks[0], ranks[-1])[: len(ranks)])}" if ranks else ""
    table.add_row("adapted layers", f"{len(plan.layers):,}{of_rank}")
    beside = f", {plan.heads:,} of them in full beside the adapters" if plan.layers and plan.heads else ""
    table.add_row("trainable at the start", _share(plan.trainable.start, plan.total) + beside)
    course = plan.trainable
    if not course.changes:
        return table
    if course.average is None or course.end is None:
        reason = "give total_steps" if course.total_steps is None else "the data will tell"
        table.add_row("on average, at the end", reason)
        return table
    end = course.end
    spread = "" if end.least == end.most else f", between {end.least:,} and {end.most:,}"
    table.add_row("on average over the run", _share(round(course.average), plan.total))
    table.add_row("at the end", _share(round(end.expected), plan.total) + spread)
    return table


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / total:.3f} %)"


def _bytes(plan: Plan) -> Table:
    memory = plan.memory
    table = Table(show_header=False, title="memory at the start, when most trains", title_justify="left")
    table.add_row("weights, adapters included", in_words(memory.weights))
    table.add_row("state of the method", in_words(memory.state))
    elsewhere = f", and {in_words(memory.copies_on_cpu)} in the processor's memory" if memory.copies_on_cpu else ""
    table.add_row("copies of what trains in full", in_words(memory.copies) + elsewhere)
    table.add_row(f"moments of {plan.run.optimizer}", in_words(memory.moments))
    table.add_row("gradients", in_words(memory.gradients))
    known = memory.activations is not None
    table.add_row(
        "activations and temporaries", in_words(memory.activations or 0) if known else "not known", end_section=True
    )
    table.add_row("peak", in_words(memory.peak) + ("" if known else ", activations not counted"), end_section=True)
    table.add_row("adapter file", in_words(memory.adapter_file))
    table.add_row("checkpoint to resume from", in_words(memory.checkpoint))
    return table


def in_words(count: int) -> str:
    """Bytes with three figures: 1.41 TB is 1,410,000,000,000."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"


def _assumptions(plan: Plan) -> str:
    run = plan.run
    told = f"batch {run.batch_size} × {run.sequence_length} tokens, {run.precision}, "
    told += "activations recomputed" if run.gradient_checkpointing else "activations kept"
    return f"{told}, task {plan.task or 'not known'}. Not counted: libraries, the driver's own, holes of the allocator."


def _verdict(plan: Plan) -> str:
    assert plan.device_memory is not None
    fits = "fits" if plan.fits else "does not fit"
    if "rank" not in {f.name for f in fields(plan.method)}:
        return f"The run {fits} into {in_words(plan.device_memory)}."
    largest = "no rank does" if plan.largest_rank is None else f"the largest rank that does is {plan.largest_rank}"
    return f"The run {fits} into {in_words(plan.device_memory)}; {largest}."
