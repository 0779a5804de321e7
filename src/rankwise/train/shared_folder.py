"""A folder that several processes write together, whole or not at all."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rankwise.distributed import from_all, is_first, together
from rankwise.io.atomic import replaced_folder


@contextmanager
def shared_folder(target: Path) -> Iterator[Path]:
    """As `replaced_folder`, for all processes of a group on one file system: the first makes, syncs and renames the
    staging folder, the others put their own files into it.

    If one of them fails nothing is renamed, and an error is raised in all.
    """
    with ExitStack() as stack:
        with together():
            staging = stack.enter_context(replaced_folder(target)) if is_first() else target
        staging = from_all(staging)[0]
        with together():
            yield staging
        with together():
            stack.close()
