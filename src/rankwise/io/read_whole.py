"""Reading folders that another process may be replacing, or died while replacing. Changes nothing on the disk."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rankwise.errors import FolderError
from rankwise.io.atomic import COMMITTED, OLD, beside

T = TypeVar("T")
READS = 50  # how often a folder is read anew because another process replaced it meanwhile


def read_whole(target: Path, read: Callable[[Path], T]) -> T:
    """`read(folder)` of one whole version of `target`, wherever a crash left it.

    Read anew if it was replaced meanwhile. Nothing on the disk is changed. Raises what `read` raises.
    """
    for _ in range(READS):
        place = _current(target)
        with _held_open(place):
            before = _identity(place)
            try:
                result = read(place)
            except FolderError:
                if _current(target) == place and _identity(place) == before:
                    raise
            else:
                if _current(target) == place and _identity(place) == before:
                    return result
        time.sleep(0.01)
    raise FolderError(f"{target} is replaced again and again while it is read. Load it when its writer has finished.")


@contextmanager
def _held_open(folder: Path) -> Iterator[None]:
    """Held open, a folder that was removed keeps its inode number: no other one passes for it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))  # never a pipe, which would wait
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.close(descriptor)


def _current(target: Path) -> Path:
    target = Path(os.path.realpath(target))
    committed, aside = target / COMMITTED, beside(target, OLD)
    if committed.is_dir() and not committed.is_symlink():
        return committed
    return aside if aside.is_dir() and not target.exists() else target


def _identity(folder: Path) -> tuple[tuple[int, int, int, int], ...]:
    """Changes whenever the folder, or a file of an adapter in it, is another one than before."""
    try:
        own = folder.stat()
        with os.scandir(folder) as entries:
            inside = sorted(e.path for e in entries if e.name.endswith((".json", ".safetensors")))
        stats = [os.lstat(path) for path in inside]
    except OSError:
        return ()
    files = [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in stats]
    return ((own.st_dev, own.st_ino, 0, 0), *files)
