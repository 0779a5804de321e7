"""Folders and files that are either the old one or the new one, whenever the process dies.

Beside a folder `name` a writer uses three others, which no reader takes for a whole one:

.name.staging   being written, by the one process that holds its lock
.name.old       the old version, between the two renames that put the new one in its place
.name.removed   being deleted

Readers (`read_whole`) change nothing: what a crash leaves is cleared away by the next writer of the same folder.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rankwise.errors import FolderError

STAGING, OLD, REMOVED = "staging", "old", "removed"
COMMITTED = ".rankwise-new"  # inside a folder that holds other things too: the new files, whole, on their way in


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A staging folder beside `target`; when the block ends well it takes the target's place, else it is removed.

    Everything is synced before the rename. An existing target is moved aside first and deleted last: a crash between
    the two renames leaves the old folder under its aside name, where `read_whole` finds it and `recover` puts it back.
    Raises FolderError with the path when the disk refuses, or while another process writes the same folder.
    """
    target = target.absolute()
    try:
        _refuse_file(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(beside(target, STAGING)) as staging:
            recover(target)
            yield staging
            _sync_tree(staging)
            _swap(staging, target)
    except Exception as error:
        if not _is_of_disk(error):
            raise
        raise _refused(target, error) from error


@contextmanager
def replaced_files(target: Path, names: Collection[str]) -> Iterator[Path]:
    """As `replaced_folder`, but what else the target holds stays: only the files called `names` are replaced.

    Then the new files are first put into a folder inside the target, which readers prefer while it is there.
    """
    target = Path(os.path.realpath(target))  # a link stays, and what it names is replaced
    _refuse_file(target)
    if not target.exists() or _is_swappable(target, names):
        with replaced_folder(target) as staging:
            yield staging
        return
    committed = target / COMMITTED
    with replaced_folder(committed) as staging:
        yield staging
    try:
        for name in names:
            _move_in(committed / name, target / name)
        _sync(target)
        _discard(committed)
    except OSError as error:
        raise FolderError(f"{target} was saved, but into {committed}: {error}. Saving again finishes it.") from error


def _refuse_file(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise FolderError(f"{target} is a file, not a folder. Give another name, or remove it.")


def _is_swappable(target: Path, names: Collection[str]) -> bool:
    """Whether another folder can take the place of `target` and nobody misses this one: not a file of somebody else's,
    not a shell or a container that has it as its working directory or volume."""
    held = {entry.name for entry in target.iterdir()} if target.is_dir() else set()
    free = os.access(target.parent, os.W_OK) and not os.path.ismount(target)
    return bool(held) and held <= set(names) and free and not Path.cwd().is_relative_to(target)


def _move_in(new: Path, place: Path) -> None:
    if not new.exists():
        place.unlink(missing_ok=True)
        return
    staging = beside(place, STAGING)
    staging.unlink(missing_ok=True)
    try:
        os.link(new, staging)
    except OSError:  # a file system without hard links
        shutil.copyfile(new, staging)
        _sync(staging)
    staging.replace(place)


def recover(target: Path) -> None:
    """Finish what a crash left of `target`, as its one writer: the old folder comes back if the new did not arrive."""
    target = target.absolute()
    _delete(beside(target, REMOVED))
    aside = beside(target, OLD)
    if aside.is_dir() and not target.exists():
        aside.rename(target)
    elif aside.is_dir():
        with suppress(OSError):  # the new one is in its place, which is what counts
            _discard(aside)


def recover_all(parent: Path, prefix: str) -> None:
    """`recover` every folder in `parent` whose name begins with `prefix`, and remove what was only begun."""
    for mark in (OLD, REMOVED, STAGING):
        for left in parent.glob(f".{prefix}*.{mark}"):
            target = left.with_name(left.name[1:].removesuffix(f".{mark}"))
            with suppress(OSError), _claimed(beside(target, STAGING)):
                recover(target)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a crash in between leaves no half of it under its name."""
    _discard(folder.absolute())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` so that the file is either the old one or the new one. Raises FolderError with the path."""
    with replaced_file(path) as file:
        file.write(json.dumps(data, indent=1) + "\n")


@contextmanager
def replaced_file(path: Path) -> Iterator[IO[str]]:
    """A text file that takes the place of `path` when the block ends well. Raises FolderError with the path."""
    with replaced_path(path) as staging, staging.open("w", encoding="utf-8") as file:
        yield file


@contextmanager
def replaced_path(path: Path) -> Iterator[Path]:
    """As `replaced_file`, for a block that opens, writes and closes the file by itself."""
    staging = beside(path, STAGING)
    try:
        yield staging
        _sync(staging)
        staging.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        staging.unlink(missing_ok=True)


def _swap(staging: Path, target: Path) -> None:
    aside = beside(target, OLD)
    try:
        if target.exists() or target.is_symlink():
            target.rename(aside)
        staging.rename(target)
        _sync(target.parent)
    finally:
        recover(target)  # also when the second rename was refused or interrupted


def _discard(folder: Path) -> None:
    """Half-deleted it must not pass for whole, so it is given a name that says so before anything in it goes."""
    removed = beside(folder, REMOVED)
    _delete(removed)
    folder.rename(removed)
    _delete(removed)


def _delete(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _claimed(staging: Path) -> Iterator[Path]:
    """The empty staging folder, for this process alone; what a dead one left in it is removed."""
    descriptor = _lock(staging)
    try:
        for entry in staging.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        yield staging
    finally:
        if _is_open_as(descriptor, staging):  # else it has its final name, and this one may be another process's
            shutil.rmtree(staging, ignore_errors=True)
        os.close(descriptor)


def _is_open_as(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(staging: Path) -> int:
    """Make and lock a staging folder. The lock goes with the process that holds it, however that ends."""
    import fcntl  # not on every system, and loading needs none

    while True:
        staging.mkdir(exist_ok=True)
        descriptor = os.open(staging, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise FolderError(
                f"another process or thread is saving there: it holds {staging}. "
                "Give each its own folder; in a distributed run save on one rank."
            ) from None
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(descriptor)
                raise
        if _is_open_as(descriptor, staging):
            return descriptor
        os.close(descriptor)  # it became somebody's finished folder between the two calls


def _is_of_disk(error: Exception) -> bool:
    """Also those of torch.save and of tokenizers, which have no type of their own for a disk that is full."""
    return isinstance(error, OSError) or re.search(r"os error \d|inline_container", str(error)) is not None


def _refused(path: Path, error: Exception) -> FolderError:
    if isinstance(error, FolderError):
        return error
    return FolderError(f"could not write {path}: {error}. What was there before is unchanged.")


def beside(target: Path, mark: str) -> Path:
    return target.with_name(f".{target.name}.{mark}")


def _sync_tree(folder: Path) -> None:
    for entry in folder.rglob("*"):
        if not entry.is_symlink():
            _sync(entry)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
