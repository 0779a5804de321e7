"""Brings benchmarks/results/*.md into the site, where they are measured and not where they are read."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path("benchmarks/results")
OUTSIDE = re.compile(r"\]\((?:\.\./)+(benchmarks/results/[\w.-]+\.md)\)")  # as the pages link to them on disk


def on_config(config: Any) -> Any:
    """A line of the navigation for each."""
    section = next(part["Benchmarks"] for part in config.nav if "Benchmarks" in part)
    section += [{page.stem: page.as_posix()} for page in _results(config)]
    return config


def on_files(files: Files, config: Any) -> Files:
    root = Path(config.config_file_path).parent
    for page in _results(config):
        files.append(File.generated(config, page.as_posix(), abs_src_path=str(root / page)))
    return files


def on_page_markdown(markdown: str, page: Any, **given: Any) -> str:
    up = "../" * page.file.src_uri.count("/")
    return OUTSIDE.sub(lambda link: f"]({up}{link[1]})", markdown)


def _results(config: Any) -> list[Path]:
    root = Path(config.config_file_path).parent
    return sorted(path.relative_to(root) for path in (root / RESULTS).glob("*.md"))
