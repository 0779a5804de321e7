"""The documentation site: every page is in it, it is built without a warning, and it fetches nothing from elsewhere."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import rankwise

ROOT = Path(__file__).parents[1]


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for part in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ():
        yield from leaves(part)


def test_every_page_is_in_the_navigation_once() -> None:
    shown = sorted(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert shown == sorted(page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md"))


def test_every_public_name_is_in_the_api() -> None:
    told = set(re.findall(r"^::: rankwise\.(\w+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE))
    errors = {name for name in rankwise.__all__ if name.endswith("Error")}  # as the members of rankwise.errors
    assert told - {"errors"} == set(rankwise.__all__) - errors


@pytest.mark.slow
def test_the_tables_of_scaling_are_those_of_the_script() -> None:
    """8B only: the others take the same path through the same formulas."""
    code = "import scaling as s; s.SIZES = {'8B': s.SIZES['8B']}; print(s.sent_table()); print(s.memory_table())"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        check=True,
    )
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8").splitlines()
    lines = run.stdout.splitlines()
    assert len(lines) == 2 * (2 + 4) and all(line in page for line in lines), run.stdout


@pytest.mark.slow
def test_the_site_is_built_and_needs_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="(\w+:)?//', page.read_text(encoding="utf-8"))
        fetched += re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect|preload)"[^>]*href="\w+://', page.read_text())
        assert not fetched, page
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert all(f'id="rankwise.{name}"' in api for name in rankwise.__all__ if not name.endswith("Error"))
    assert (tmp_path / "benchmarks/results/steps-1-thread.html").is_file()
