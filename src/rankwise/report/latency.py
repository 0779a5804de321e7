"""The table that `benchmarks/latency.py` writes."""

from dataclasses import dataclass
from pathlib import Path

from rankwise.io.untrusted import read_json
from rankwise.report.reading import INTERVAL, NUMBER, TEXT, Kind, checked, list_of

ROW: dict[str, Kind] = {"case": TEXT, "ms": NUMBER, "ratio": NUMBER, "ratio_quartiles": INTERVAL}
ROWS = list_of(("a case", lambda v: isinstance(v, dict)))


@dataclass(frozen=True)
class Latency:
    """Milliseconds of each case, and its ratio to the base, by problem."""

    machine: str
    problems: dict[str, list[dict[str, object]]]


def read_latency(path: Path) -> Latency:
    """Raises FolderError for what is no such table."""
    data = read_json(path)
    machine = data.pop("machine", {})
    checked(data, dict.fromkeys(data, ROWS), str(path))
    problems = {title: [checked(row, ROW, f"{path}, {title}") for row in rows] for title, rows in data.items()}
    return Latency(", ".join(f"{k} {v}" for k, v in machine.items()) if isinstance(machine, dict) else "", problems)
