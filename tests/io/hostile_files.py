"""Broken files whatever they should hold: cut, replaced by links, devices and pickles."""

import gzip
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from hostile_folder import ADAPTER, DESCRIPTION, FILES, STATE, Cases, Payload, remove, rewrite


def _cut() -> Cases:
    """Each file, cut at many places; and with bytes in front."""
    shares = random.Random(0)
    for good, file in (("lora", DESCRIPTION), ("adalora", ADAPTER), ("aflora", STATE)):
        for k in range(12):
            share = shares.random() * 0.98
            yield f"cut-{file}-{k}", good, lambda f, file=file, share=share: rewrite(f / file, _first(share))
        for front in (b"\0", b"\xef\xbb\xbf", b"PK\x03\x04", b"\xff" * 8):
            yield f"before-{file}-{front!r}", good, lambda f, file=file, x=front: rewrite(f / file, lambda b: x + b)
        yield f"empty-{file}", good, lambda f, file=file: rewrite(f / file, lambda b: b"")
        yield f"zeros-{file}", good, lambda f, file=file: rewrite(f / file, lambda b: b"\0" * len(b))


def _first(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(share * len(content))]


def _files() -> Cases:
    """Links, devices and folders where files should be."""
    for file in FILES:
        for name, make in PLACES.items():
            yield f"{name}-{file}", "adalora", lambda f, file=file, m=make: (remove(f / file), m(f / file))
        yield f"no-{file}", "adalora", lambda f, file=file: remove(f / file)
    yield "folder-is-a-file", "lora", lambda f: (f.rename(f.with_name("away")), f.write_text("{}"))
    yield "folder-is-empty", "lora", lambda f: [(remove(f / file)) for file in FILES]
    yield "folder-is-a-circle", "lora", lambda f: (f.rename(f.with_name("away")), f.symlink_to(f))
    yield "folder-is-a-pipe", "lora", lambda f: (f.rename(f.with_name("away")), os.mkfifo(f))
    yield "new-files-are-a-link", "lora", _linked_new_files


def _linked_new_files(folder: Path) -> None:
    """Under the name that marks files on their way in; the folder itself is no adapter."""
    away = folder.with_name("away")
    folder.rename(away)
    folder.mkdir()
    (folder / ".rankwise-new").symlink_to(away)


PLACES: dict[str, Callable[[Path], object]] = {
    "passwd": lambda p: p.symlink_to("/etc/passwd"),
    "huge": lambda p: p.symlink_to(_huge(p.parent.parent / "huge")),
    "large-file": lambda p: _huge(p),
    "zeros": lambda p: p.symlink_to("/dev/zero"),
    "memory": lambda p: p.symlink_to("/proc/self/mem"),
    "nowhere": lambda p: p.symlink_to("/nowhere/at/all"),
    "circle": lambda p: p.symlink_to(p),
    "sibling": lambda p: (p.parent.with_name("secret").write_text("{}"), p.symlink_to("../secret")),
    "pipe": lambda p: os.mkfifo(p),
    "directory": lambda p: p.mkdir(),
    "link-to-directory": lambda p: p.symlink_to("."),
}


def _huge(path: Path) -> Path:
    path.touch()
    os.truncate(path, 2**40)
    return path


def _pickles() -> Cases:
    """Code that would run when it is unpickled, under every name."""
    for file in FILES:
        yield f"pickle-{file}", "adalora", lambda f, file=file: (f / file).write_bytes(pickle.dumps(Payload(f)))
        yield f"torch-{file}", "adalora", lambda f, file=file: torch.save(Payload(f), f / file)
        yield f"old-torch-{file}", "adalora", lambda f, file=file: _torch_save_old(f, file)
        yield f"zip-{file}", "adalora", lambda f, file=file: zipfile.ZipFile(f / file, "w").writestr("a", "b")
        yield f"gzip-{file}", "adalora", lambda f, file=file: rewrite(f / file, gzip.compress)


def _torch_save_old(folder: Path, file: str) -> None:
    buffer = io.BytesIO()
    torch.save(Payload(folder), buffer, _use_new_zipfile_serialization=False)
    (folder / file).write_bytes(buffer.getvalue())


PARTS = (_cut, _files, _pickles)
