"""What happened, as typed events: one JSON object a line in `history.jsonl`.

Events hold decisions keyed by step, never clocks or losses, so two runs that decide alike write the same file. Tensors
in an event stay on the device until `flush`, which is the only place that waits for them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
    budget: int
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
class SkippedNonFinite:
    """Some gradients were NaN or infinite: this step moved no weight and taught no importance."""

    step: int
    names: tuple[str, ...]  # whose gradients
    kind: str = "skipped_non_finite"


Event = Started | Allocated | Froze | SkippedNonFinite


def quantiles(scores: Tensor) -> Tensor:
    """Minimum, quartiles and maximum of a vector, by nearest rank (n may exceed what torch.quantile accepts)."""
    ordered = torch.sort(scores.detach().float()).values
    at = torch.linspace(0, ordered.numel() - 1, 5, device=ordered.device).round().long()
    return ordered[at]


def as_json(event: Event) -> dict[str, Any]:
    """The event as plain data; masks become {name: "1101..."} and their counts {name: rank}."""
    data = {f.name: _plain(getattr(event, f.name)) for f in fields(event)}
    if isinstance(event, Allocated):
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


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a history file; a last line without its end was being written when the process died."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].split("\n") if line]


class History:
    """Events in the order they happened; written to a file when one is given."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self._pending: list[Event] = []
        self._path: Path | None = None

    def write_to(self, path: Path | None, step: int) -> None:
        """Write from now on to `path`; None: keep events in memory.

        A run that begins (step 0) starts the file anew; one that continues at `step` keeps what was decided before it,
        and drops what a later, lost part of the run had written.
        """
        self.flush()
        self._path = path
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(path) if step > 0 and line["step"] < step] if path.exists() else []
        self.lines = kept
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def add(self, event: Event) -> None:
        self._pending.append(event)

    def flush(self) -> None:
        """Wait for the device, and put pending events into `lines` and the file."""
        new = [as_json(event) for event in self._pending]
        self._pending.clear()
        self.lines += new
        if self._path is not None and new:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in new)
