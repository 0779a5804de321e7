"""The files behind a page, packed into it while they are small, so that whoever has the page has the data."""

import base64
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import FolderError
from rankwise.io.untrusted import check_ordinary
from rankwise.report import comparison, run

OF_RUN = (run.CONFIG, run.ENVIRONMENT, run.RESULTS, run.METRICS, run.HISTORY)
NAMES = (comparison.SPEC, comparison.COMPARISON, comparison.RUNS, *OF_RUN)
MOST_PACKED = 2**20  # bytes of all files in the page
MOST_RAW = 32 * 2**20  # bytes of a file that packing is tried on


def bundle(folders: Sequence[tuple[str, Path]]) -> dict[str, Any]:
    """{"files": [{"of", "name", "packed": base64 of gzip}], "left": [those that are too large]}."""
    packed: list[dict[str, str]] = []
    left: list[str] = []
    room = MOST_PACKED
    for file in NAMES:
        for name, folder in folders:
            path = folder / file
            if not path.exists():
                continue
            text = _packed(path, folder)
            if text is None or len(text) > room:
                left.append(f"{name}/{file}")
            else:
                room -= len(text)
                packed.append({"of": name, "name": file, "packed": text})
    return {"files": packed, "left": left}


def _packed(path: Path, folder: Path) -> str | None:
    check_ordinary(path, folder)
    try:
        if path.stat().st_size > MOST_RAW:
            return None
        # without a time, so that the same run makes the same page
        return base64.b64encode(gzip.compress(path.read_bytes(), mtime=0)).decode()
    except OSError as error:
        raise FolderError(f"{path} cannot be read: {error}.") from error
