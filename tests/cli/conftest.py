"""Tiny models on disk, written once for all tests of the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """model("bert") is the folder of the tiny BERT."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        path = root / name
        return path if path.exists() else tiny.save_model(name, path)

    return folder


@pytest.fixture(scope="session")
def topics(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of two classes of sentences."""
    return tiny.write_rows(tmp_path_factory.mktemp("data") / "topics.jsonl", tiny.topic_rows())
