"""comparison.md: the numbers of comparison.json as tables, and the answer in words."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from rankwise.compare.answer import shown
from rankwise.planning.plan import in_words

Numbers = Mapping[str, Any]  # a row of a task in comparison.json
HEADS = (
    *("method", "budget", "score", "95 %", "seeds", "− baseline", "p", "learning rate"),
    *("trained on average", "at the end", "time", "memory", "published"),
)


def table_of(task: str, found: Mapping[str, Any]) -> Table:
    """One task, for the terminal."""
    better = "" if found["higher_is_better"] in (None, True) else ", lower is better"
    table = Table(*HEADS, title=f"{task}: {found['metric'] or 'nothing run yet'}{better}", title_justify="left")
    for numbers in found["rows"]:
        table.add_row(*cells(numbers))
    return table


def markdown(results: Mapping[str, Any]) -> str:
    """The whole page."""
    lines = ["# Comparison", "", *results["answer"], ""]
    for task, found in results["tasks"].items():
        lines += [
            f"## {task}",
            "",
            f"Score: {found['metric'] or 'not known yet'}. Baseline: {results['baseline']}.",
            "",
        ]
        lines += [_line(HEADS), _line(["---"] * len(HEADS))]
        lines += [_line(cells(numbers)) for numbers in found["rows"]]
        lines.append("")
    lines += [_line(("method", "settings", "planned", "deviation from the budget", "")), _line(["---"] * 5)]
    lines += [_line(sizes(numbers)) for numbers in _each_once(results)]
    for title, entries in (
        ("Learning rates", [_searched(search) for search in results["searches"]]),
        ("Not run", [*results["not_run"]]),
        ("Failed", [f"{name}: {reason}" for name, reason in results["failed"].items()]),
        ("Published", [_cited(published) for published in results["published"]]),
        ("What differs", results["notes"]),
    ):
        if entries:
            lines += ["", f"## {title}", "", *(f"- {entry}" for entry in entries)]
    return "\n".join([*lines, ""])


def cells(numbers: Numbers) -> list[str]:
    """A row's."""
    spread = "" if numbers["std"] is None else f" ± {shown(numbers['std'])}"
    interval = numbers["interval"]
    return [
        numbers["method"],
        numbers["budget"] or "its own",
        "not run" if numbers["mean"] is None else shown(numbers["mean"]) + spread,
        "" if interval is None else f"{shown(interval[0])} to {shown(interval[1])}",
        str(numbers["seeds"]),
        "" if numbers["difference"] is None else f"{numbers['difference']:+.4f}",
        "" if numbers["p_value"] is None else f"{numbers['p_value']:.3g}",
        "" if numbers["learning_rate"] is None else f"{numbers['learning_rate']:g}",
        _count(numbers["trainable_average"], numbers["head_parameters"]),
        _count(numbers["trainable_end"], numbers["head_parameters"]),
        "" if numbers["seconds"] is None else f"{numbers['seconds']:.0f} s",
        "" if numbers["peak_memory"] is None else in_words(round(numbers["peak_memory"])),
        ", ".join(f"{p['value']:g}" + (f" {p['metric']}" if p["metric"] else "") for p in numbers["published"]),
    ]


def sizes(numbers: Numbers) -> list[str]:
    """How a row's budget was met."""
    deviation = "" if numbers["deviation"] is None else f"{numbers['deviation']:+.1%}"
    planned = f"{numbers['planned_parameters']:,}"
    return [_named(numbers), numbers["settings"], planned, deviation, numbers["note"]]


def _each_once(results: Mapping[str, Any]) -> list[Numbers]:
    """Rows of all tasks, those that differ in nothing but the task once."""
    rows = [numbers for found in results["tasks"].values() for numbers in found["rows"]]
    return list({tuple(sizes(numbers)): numbers for numbers in rows}.values())


def _named(numbers: Numbers) -> str:
    return " at ".join(part for part in (numbers["method"], numbers["budget"]) if part)


def _count(trainable: float | None, heads: float | None) -> str:
    return "" if trainable is None or heads is None else f"{trainable - heads:,.0f}"


def _searched(search: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{rate}: {'lost' if s is None else shown(s)}" for rate, s in search["scores"].items())
    return f"{search['task']}, {_named(search)}: {scores or 'not run'}"


def _cited(published: Mapping[str, Any]) -> str:
    metric = f" {published['metric']}" if published["metric"] else ""
    return f"{published['task']}, {_named(published)}: {published['value']:g}{metric} ({published['source']})"


def _line(parts: Any) -> str:
    return "| " + " | ".join(parts) + " |"
