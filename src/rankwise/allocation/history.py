"""What happened, as typed events: one JSON object a line in `history.jsonl`.

Events hold decisions keyed by step, never clocks or losses, so two runs that decide alike write the same file. Tensors
in an event stay on the device until `flush`, which is the only place that waits for them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import FolderError


@dataclass(frozen=True)
class Started:
    """A run began: what is adapted, with how many ranks."""

    step: int
    method: str
    total_steps: int | None
    ranks: dict[str, int]
    kind: str = "started"


@dataclass(frozen=True)
class Allocated:
    """A budget was handed out: which ranks live from this step on."""

    step: int
    budget: int  # in ranks, or in parameters if the method's budget is a size
    names: tuple[str, ...]
    masks: tuple[Tensor, ...]  # one (r,) bool per name
    score_quantiles: Tensor  # (5,): minimum, quartiles and maximum of all triplet scores
    orthogonality: Tensor  # (): value of the penalty R before this step
    kind: str = "allocated"


@dataclass(frozen=True)
class Froze:
    """Projections stopped training for good."""

    step: int
    share: float  # of the projections that may train, frozen after this step
    frozen: tuple[str, ...]  # those frozen at this step
    score_quantiles: Tensor  # (5,): of the mean scores of the projections that trained until now
    kind: str = "froze"


@dataclass(frozen=True)
class Closed:
    """Gates were thresholded: which of them are open after this step."""

    step: int
    threshold: float
    names: tuple[str, ...]
    masks: tuple[Tensor, ...]  # one (r,) bool per name
    kind: str = "closed"


@dataclass(frozen=True)
class SkippedNonFinite:
    """Some gradients were NaN or infinite: this step moved no weight and taught no importance."""

    step: int
    names: tuple[str, ...]  # whose gradients
    kind: str = "skipped_non_finite"


Event = Started | Allocated | Froze | Closed | SkippedNonFinite


def quantiles(scores: Tensor) -> Tensor:
    """Minimum, quartiles and maximum of a vector, by nearest rank (n may exceed what torch.quantile accepts)."""
    ordered = torch.sort(scores.detach().float()).values
    at = torch.linspace(0, ordered.numel() - 1, 5, device=ordered.device).round().long()
    return ordered[at]


def as_json(event: Event) -> dict[str, Any]:
    """The event as plain data; masks become {name: "1101..."} and their counts {name: rank}."""
    data = {f.name: _plain(getattr(event, f.name)) for f in fields(event)}
    if isinstance(event, Allocated | Closed):
        masks = dict(zip(data.pop("names"), data.pop("masks"), strict=True))
        data["masks"] = {name: "".join("01"[m] for m in mask) for name, mask in masks.items()}
        data["ranks"] = {name: sum(mask) for name, mask in masks.items()}
        data["live"] = sum(data["ranks"].values())
    return {"event": data.pop("kind"), **data}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


MOST_LINE = 16 * 2**20  # bytes; a line is an allocation with the masks of all layers
MOST_PENDING = 256  # events that may wait on the device


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of a history file; a last line without its end was being written when the process died.

    Raises FolderError, with the number of the line, for what is no event.
    """
    if not path.exists():
        raise FolderError(f"the history was written to {path}, which is there no more.")
    if path.is_symlink() or not path.is_file():
        raise FolderError(f"{path} is a link or no ordinary file. Remove it, or give another name for the history.")
    with path.open("rb") as file:
        for number in count(1):
            line = file.readline(MOST_LINE)
            if not line.endswith(b"\n") and len(line) < MOST_LINE:
                return
            try:
                data = json.loads(line) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                data = None
            if not isinstance(data, dict) or type(data.get("step")) is not int:
                raise FolderError(f"{path}, line {number}: no event of a history. Remove the file to begin a new one.")
            yield data


class History:
    """Events in the order they happened; written to a file when one is given, else kept in memory."""

    def __init__(self) -> None:
        self._kept: list[dict[str, Any]] = []
        self._pending: list[Event] = []
        self._path: Path | None = None

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The events that were flushed, read back from the file if there is one."""
        return self._kept if self._path is None else list(read_lines(self._path))

    def write_to(self, path: Path | None, step: int) -> None:
        """Write from now on to `path`; None: keep events in memory.

        A run that begins (step 0) starts the file anew; one that continues at `step` keeps what was decided before it,
        and drops what a later, lost part of the run had written.
        """
        self.flush()
        if path is not None:
            self._begin(
                path, (ln for ln in read_lines(path) if ln["step"] < step) if step > 0 and path.exists() else ()
            )
        self._path = path

    def move_to(self, path: Path) -> None:
        """Write from now on to `path`, and at once what this run has decided so far."""
        self.flush()
        if path != self._path:
            self._begin(path, self.lines)
            self._path = path

    def _begin(self, path: Path, lines: Iterable[dict[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".{path.name}.staging")  # a crash while cutting must not cost what was decided
        with staging.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        staging.replace(path)
        self._kept = []

    def add(self, event: Event) -> None:
        self._pending.append(event)
        if len(self._pending) >= MOST_PENDING:
            self.flush()

    def flush(self) -> None:
        """Wait for the device, and put pending events into the file, or into memory where there is none."""
        new = [as_json(event) for event in self._pending]
        self._pending.clear()
        if self._path is None:
            self._kept += new
        elif new:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in new)
