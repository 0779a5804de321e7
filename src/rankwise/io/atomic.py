"""Folders and files that are either the old one or the new one, whenever the process dies."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rankwise.errors import FolderError


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A staging folder beside `target`; when the block ends well it takes the target's place, else it is removed.

    Files are synced before the rename. An existing target is moved aside first and deleted last: a crash between the
    two renames leaves the old folder under its aside name, which `recover` puts back.
    Raises FolderError with the path when the disk refuses.
    """
    staging, aside = _beside(target, "staging"), _beside(target, "old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        yield staging
        for file in staging.rglob("*"):
            if file.is_file():
                _sync(file)
        _sync(staging)
        if target.exists():
            target.rename(aside)
        staging.rename(target)
        _sync(target.parent)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        if isinstance(error, FolderError):
            raise
        raise FolderError(f"could not write {target}: {error}. What was there before is unchanged.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def recover(target: Path) -> None:
    """Finish what a crash between two renames left: the old folder comes back if the new one did not arrive."""
    aside = _beside(target, "old")
    if aside.exists() and not target.exists():
        aside.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a crash in between leaves no half of it under its name."""
    aside = _beside(folder, "old")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` so that the file is either the old one or the new one. Raises FolderError with the path."""
    staging = _beside(path, "staging")
    try:
        staging.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        _sync(staging)
        staging.replace(path)
    except OSError as error:
        raise FolderError(f"could not write {path}: {error}. What was there before is unchanged.") from error


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
