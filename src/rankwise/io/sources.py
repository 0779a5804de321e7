"""What `load` reads: a native folder, a folder of PEFT's, or a checkpoint of loralib's. All become the same `Saved`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.adapter import Method
from rankwise.errors import FolderError
from rankwise.io import folder as native
from rankwise.io import peft_format, peft_import
from rankwise.io.convert import convert
from rankwise.io.folder import DESCRIPTION, Saved
from rankwise.io.hub import located
from rankwise.io.loralib import Loralib

Source = str | Path | Loralib


def opened(
    source: Source,
    method: Method | str | Mapping[str, Any] | None,
    model: nn.Module | None = None,
    revision: str | None = None,
) -> tuple[Path, Saved, list[str]]:
    """Where it lies, what it holds, as an adapter of `method` if one is given, and in words what that meant.

    `model` is the plain model that it is for; of all formats PEFT's VeRA alone cannot be read without. Raises
    FolderError, naming the file and what is wrong with it; ConfigError where the method cannot hold it exactly.
    """
    path = Path(source.path) if isinstance(source, Loralib) else located(source, revision)
    saved = source.read() if isinstance(source, Loralib) else read(path, model)
    if method is None:
        return path, saved, []
    return path, *convert(path, saved, {"name": method} if isinstance(method, str) else method)


def read(path: Path, model: nn.Module | None = None) -> Saved:
    """A native folder, or one of PEFT's as if rankwise had saved it. Raises FolderError."""
    if path.is_file():
        raise FolderError(f"{path} is a file. If loralib wrote it, load rankwise.Loralib({path.name!r}, alpha=...).")
    return peft_import.read(path, model) if is_peft(path) else native.read(path)


def is_peft(folder: Path) -> bool:
    """Whether the folder is one of PEFT's, and not a native one too, which says more."""
    return os.path.lexists(folder / peft_format.CONFIG) and not os.path.lexists(folder / DESCRIPTION)
