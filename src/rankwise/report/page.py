"""Writes the page: everything in one file, and nothing in it that a run's files could put there as markup or code.

Texts are escaped by the template; data lies in a block that is no script, with <, > and & written as \\u003c and so on;
and the page's policy lets only the scripts of this package run, known by their hashes, and nothing be fetched.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rankwise.errors import ConfigError, FolderError, not_installed
from rankwise.io.atomic import replaced_file
from rankwise.report.bundle import bundle
from rankwise.report.comparison import Comparison, is_comparison, read_comparison
from rankwise.report.latency import Latency, read_latency
from rankwise.report.run import Run, is_run, read_run
from rankwise.report.sections import Section, of_comparison, of_several
from rankwise.report.tables import facts, latency_tables

TEMPLATE = "template"
STYLE = "template/page.css"
SCRIPT = "template/page.js"


@dataclass(frozen=True)
class Page:
    """What the template is given."""

    title: str
    about: str
    state: str | None  # a warning, such as that the run still trains
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    bundle: dict[str, Any]


def write_report(folders: Sequence[Path], output: Path, *, latency: Path | None = None) -> None:
    """One page of runs, or of a comparison. Everything is read and drawn before the file is written."""
    if output.suffix not in (".html", ".htm"):
        raise ConfigError(f"-o {output}: the report is an HTML page; give it a name that ends in .html.")
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise FolderError(f"{output} cannot be written: give a file in a folder that exists.")
    measured = None if latency is None else read_latency(latency)
    text = html_of(page_of(folders, measured))
    with replaced_file(output) as file:
        file.write(text)


def page_of(folders: Sequence[Path], latency: Latency | None = None) -> Page:
    """Raises FolderError for what is neither a run nor a comparison, or is broken."""
    comparisons = [folder for folder in folders if is_comparison(folder)]
    if comparisons and len(folders) > 1:
        raise ConfigError(f"{comparisons[0]} is a comparison, which is reported alone. Give it, or runs.")
    places = [folder.resolve() for folder in folders]
    for folder in folders:
        if places.count(folder.resolve()) > 1:
            raise ConfigError(f"{folder} was given twice.")
        if not folder.is_dir():
            raise FolderError(f"{folder} is not there, or is no folder. Give run folders, or a comparison's.")
        if not (comparisons or is_run(folder)):
            raise FolderError(f"{folder} is neither a run (config.yaml) nor a comparison (runs.jsonl).")
    measured = [Section("latency", "Latency", [latency.machine], tables=latency_tables(latency))] if latency else []
    if comparisons:
        return _comparison_page(read_comparison(folders[0]), measured)
    return _run_page([read_run(f, name) for f, name in zip(folders, _names(folders), strict=True)], measured)


def _names(folders: Sequence[Path]) -> list[str]:
    """A run is called by its folder's name, or by its whole path where two would be called alike."""
    short = [folder.resolve().name for folder in folders]
    return [name if short.count(name) == 1 else str(f) for f, name in zip(folders, short, strict=True)]


def _run_page(runs: Sequence[Run], measured: Sequence[Section]) -> Page:
    training = [run.name for run in runs if run.results is None]
    state = f"Not finished: {', '.join(training)}. This page shows how far it had come." if training else None
    one = runs[0]
    return Page(
        title=", ".join(run.name for run in runs),
        about=f"{one.method} on {_short(str(one.config.get('model')))}" if len(runs) == 1 else f"{len(runs)} runs",
        state=state,
        facts=facts(one) if len(runs) == 1 else [],
        sections=[*of_several(runs), *measured],
        bundle=bundle([(run.name, run.folder) for run in runs]),
    )


def _short(model: str) -> str:
    """A hub id as it is; of a path, the end of it. The whole stands among the settings."""
    return "/".join(Path(model).parts[-2:])


def _comparison_page(comparison: Comparison, measured: Sequence[Section]) -> Page:
    done = len(comparison.cells)
    state = None if comparison.finished else f"Not finished: {done:,} runs have ended so far."
    methods = len({cell["method"] for cell in comparison.cells})
    return Page(
        title=comparison.name,
        about=f"a comparison of {methods} methods in {done:,} runs",
        state=state,
        facts=[],
        sections=[*of_comparison(comparison), *measured],
        bundle=bundle([(comparison.name, comparison.folder), *((run.name, run.folder) for run in comparison.drawn)]),
    )


def html_of(page: Page) -> str:
    """The page as text."""
    own = files("rankwise.report")
    scripts = [_plotly(), (own / SCRIPT).read_text(encoding="utf-8")]
    environment = Environment(
        loader=PackageLoader("rankwise.report", TEMPLATE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        page=page,
        data=as_block({"charts": _charts(page), "maps": _maps(page), "bundle": page.bundle}),
        style=(own / STYLE).read_text(encoding="utf-8"),
        scripts=scripts,
        hashes=[base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts],
        version=version("rankwise"),
    )


def _plotly() -> str:
    """plotly.js, as the installed plotly brings it."""
    try:
        from plotly.offline import get_plotlyjs  # half a second to import, and only the finished page needs it
    except ImportError:
        raise ConfigError(not_installed("a report", "plotly", "report")) from None
    script: str = get_plotlyjs()
    return script


def _charts(page: Page) -> list[dict[str, Any]]:
    return [chart.as_json() for section in page.sections for chart in section.charts]


def _maps(page: Page) -> list[dict[str, Any]]:
    return [found.data for section in page.sections for found in section.maps]


def as_block(data: Any) -> str:
    """JSON that can stand in an HTML page: nothing in it ends its block or begins another."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
