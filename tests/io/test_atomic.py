"""A folder is the old one or the new one: killed processes, full disks, readers beside writers, files of others."""

import itertools
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

import rankwise as rw
import toy
from rankwise.io import atomic
from rankwise.io.atomic import recover_all, remove_folder, replaced_folder, write_json
from rankwise.train.trainer import complete_checkpoints

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rankwise.train.trainer", "toy"])


def made() -> rw.Adaptation:
    model = toy.mlp()
    model.config = SimpleNamespace(_name_or_path="", model_type="mlp")  # type: ignore[assignment]
    return rw.adapt(model, rw.LoRA(rank=3, targets=["0", "2", "4"]))


def number(adaptation: rw.Adaptation, n: int) -> rw.Adaptation:
    """Put `n` into every tensor and into the description."""
    with torch.no_grad():
        for parameter in adaptation.parameters():
            parameter.fill_(n)
    adaptation.model.config._name_or_path = f"save {n}"
    return adaptation


def numbered(folder: Path) -> int:
    """Load it; the one number that is everywhere in it."""
    adaptation = rw.load(toy.mlp(), folder)
    found = {value for p in adaptation.parameters() for value in p.flatten().tolist()}
    found |= {float(json.loads((folder / "rankwise.json").read_text())["base_model"]["name"].removeprefix("save "))}
    assert len(found) == 1
    return int(found.pop())


def hidden(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("."))


def save_for_ever(folder: Path, start: int) -> None:
    """One adapter folder again and again, and numbered checkpoints of which the last two stay, as the trainer does."""
    torch.set_num_threads(1)
    adaptation, run = made(), folder / "checkpoints"
    for n in itertools.count(start):
        number(adaptation, n).save(folder / "adapter")
        with replaced_folder(run / f"checkpoint-{n}") as staging:
            adaptation.save(staging)
            write_json(staging / "trainer_state.json", {"global_step": n})
        recover_all(run, "checkpoint-")
        for old in complete_checkpoints(run)[:-2]:
            remove_folder(old)


def started(folder: Path, start: int) -> Any:
    process = PROCESSES.Process(target=save_for_ever, args=(folder, start), daemon=True)
    process.start()
    return process


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("kills", [10, pytest.param(120, marks=pytest.mark.slow)])
def test_killed_while_saving(tmp_path: Path, kills: int) -> None:
    moments = random.Random(kills)
    run, last, interrupted = tmp_path / "checkpoints", 0, 0
    run.mkdir()
    number(made(), 0).save(tmp_path / "adapter")
    for _ in range(kills):
        process = started(tmp_path, last + 1)
        while not (run / f"checkpoint-{last + 1}").exists():
            time.sleep(0.002)
        time.sleep(moments.random() * 0.05)
        kill(process)
        interrupted += bool(hidden(tmp_path) or hidden(run))
        complete = complete_checkpoints(run)
        for checkpoint in complete:
            n = int(checkpoint.name.removeprefix("checkpoint-"))
            assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == n
            assert numbered(checkpoint) == n
        assert complete
        assert numbered(current(tmp_path / "adapter")) >= last
        last = numbered(complete[-1])
    assert interrupted >= kills // 3  # else the moments were no test
    process = started(tmp_path, last + 1)  # whoever is killed before it removes old ones leaves them to the next
    while not (run / f"checkpoint-{last + 2}").exists():
        time.sleep(0.002)
    kill(process)
    assert len(complete_checkpoints(run)) <= 3
    last = max(last + 2, numbered(current(tmp_path / "adapter")))
    number(made(), last + 1).save(tmp_path / "adapter")
    recover_all(run, "checkpoint-")
    assert hidden(tmp_path) == hidden(run) == []
    assert numbered(tmp_path / "adapter") == last + 1


def current(folder: Path) -> Path:
    """The folder that `rw.load` reads: after a kill between two renames the old one stands beside its place."""
    return folder if folder.exists() else folder.with_name(f".{folder.name}.old")


def test_reading_while_another_process_saves(tmp_path: Path) -> None:
    process = started(tmp_path, 1)
    seen: list[int] = []
    try:
        while not (tmp_path / "adapter").exists():
            time.sleep(0.002)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            adaptation = rw.load(toy.mlp(), tmp_path / "adapter")
            values = {value for p in adaptation.parameters() for value in p.flatten().tolist()}
            assert len(values) == 1
            seen.append(int(values.pop()))
        assert process.is_alive()  # no reader stood in its way
    finally:
        kill(process)
    assert seen == sorted(seen) and len(set(seen)) > 5


def test_reading_changes_nothing(tmp_path: Path) -> None:
    number(made(), 7).save(tmp_path / "a")
    for mark in ("staging", "removed"):
        (tmp_path / f".a.{mark}").mkdir()
        (tmp_path / f".a.{mark}" / "rankwise.json").write_text("{")
    (tmp_path / "a").rename(tmp_path / ".a.old")  # died between the two renames
    before = listing(tmp_path)
    rw.load(toy.mlp(), tmp_path / "a")
    assert listing(tmp_path) == before
    (tmp_path / ".a.old").rename(tmp_path / ".b.removed")  # being deleted: no adapter any more
    for name in ("a", "b"):
        with pytest.raises(rw.FolderError, match="is no rankwise adapter"):
            rw.load(toy.mlp(), tmp_path / name)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in [folder, *folder.rglob("*")]}


def test_the_next_save_clears_what_a_crash_left(tmp_path: Path) -> None:
    number(made(), 1).save(tmp_path / "a")
    for mark in ("staging", "removed", "old"):
        (tmp_path / f".a.{mark}" / "deep").mkdir(parents=True)
        (tmp_path / f".a.{mark}" / "deep" / "file").write_text("left")
    number(made(), 2).save(tmp_path / "a")
    assert hidden(tmp_path) == [] and numbered(tmp_path / "a") == 2


def test_only_whole_folders_are_checkpoints(tmp_path: Path) -> None:
    adaptation = made()
    for n in (3, 12):
        adaptation.save(tmp_path / f"checkpoint-{n}")
    adaptation.save(tmp_path / ".checkpoint-20.old")  # was about to be replaced: comes back
    for name in (".checkpoint-1.removed", ".checkpoint-15.staging", "checkpoint-", "checkpoint-7x", "old-checkpoint-4"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-12"]
    recover_all(tmp_path, "checkpoint-")
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-12", "checkpoint-20"]
    assert hidden(tmp_path) == []


def test_recovering_leaves_a_living_writer_alone(tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "checkpoint-5") as staging:
        (staging / "file").write_text("being written")
        recover_all(tmp_path, "checkpoint-")
        with pytest.raises(rw.FolderError, match="another process or thread is saving there"):
            made().save(tmp_path / "checkpoint-5")
    assert (tmp_path / "checkpoint-5" / "file").exists() and hidden(tmp_path) == []


@pytest.mark.parametrize("at", [1, 2])
def test_a_rename_that_fails_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    number(made(), 1).save(tmp_path / "a")
    rename, calls = Path.rename, itertools.count(1)

    def refuse(self: Path, target: Path) -> Path:
        if next(calls) == at:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(rw.FolderError, match=r"could not write .*a: .*No space left"):
        number(made(), 2).save(tmp_path / "a")
    assert numbered(tmp_path / "a") == 1 and hidden(tmp_path) == []


def words() -> Tokenizer:
    return Tokenizer(models.WordLevel({f"word {i}": i for i in range(10_000)}, "word 0"))


def save_with_little_room(folder: Path, most: int) -> None:
    """What a full disk does to adapter, run files and checkpoint: refused with the path, the old kept."""
    torch.set_num_threads(1)
    adaptation = number(made(), 2)
    if most:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    for name in ("adapter", "new"):
        with pytest.raises(rw.FolderError, match=f"could not write .*{name}"):
            adaptation.save(folder / name)
    for save in (lambda file: torch.save(torch.zeros(10**5), file), lambda file: words().save(str(file))):
        with (
            pytest.raises(rw.FolderError, match=r"could not write .*checkpoint-1"),
            replaced_folder(folder / "checkpoint-1") as staging,
        ):
            save(staging / "file")
    with pytest.raises(rw.FolderError, match=r"results\.json"):
        write_json(folder / "results.json", {"scores": "x" * 10**6})


@pytest.mark.parametrize("most", [100, 700, 1400])
def test_no_room(tmp_path: Path, most: int) -> None:
    number(made(), 1).save(tmp_path / "adapter")
    write_json(tmp_path / "results.json", {"scores": 1})
    process = PROCESSES.Process(target=save_with_little_room, args=(tmp_path, most))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert numbered(tmp_path / "adapter") == 1
    assert json.loads((tmp_path / "results.json").read_text()) == {"scores": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "results.json"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    number(made(), 1).save(small_disk / "adapter")
    write_json(small_disk / "results.json", {"scores": 1})
    (small_disk / "filler").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096 - 4096))
    before = listing(small_disk)
    save_with_little_room(small_disk, 0)
    assert listing(small_disk).keys() == before.keys() and numbered(small_disk / "adapter") == 1


def test_other_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "checkpoint-3").mkdir(parents=True)
    (folder / "checkpoint-3" / "optimizer.pt").write_text("dear")
    (folder / "README.md").write_text("mine")
    for n in (1, 2, 3):
        number(made(), n).save(folder)
        assert numbered(folder) == n
        assert (folder / "README.md").read_text() == "mine"
        assert (folder / "checkpoint-3" / "optimizer.pt").read_text() == "dear"
        assert hidden(folder) == hidden(tmp_path) == []


def test_a_crash_beside_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("mine")
    number(made(), 1).save(tmp_path)
    moved = itertools.count()

    def die(new: Path, place: Path) -> None:
        if next(moved) == 1:
            raise KeyboardInterrupt
        if new.exists():
            new.replace(place)

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "_move_in", lambda new, place: die(copied(new), place))
        with pytest.raises(KeyboardInterrupt):
            number(made(), 2).save(tmp_path)
    adaptation = rw.load(toy.mlp(), tmp_path)  # the second one, though its files are not all in their places
    assert {value for p in adaptation.parameters() for value in p.flatten().tolist()} == {2.0}
    number(made(), 3).save(tmp_path)
    assert hidden(tmp_path) == [] and numbered(tmp_path) == 3


def copied(file: Path) -> Path:
    copy = file.with_name("copy")
    if file.exists():
        copy.write_bytes(file.read_bytes())
    return copy


def test_places_that_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(rw.FolderError, match="is a file, not a folder"):
        made().save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for n in (1, 2):  # a shell that stands in the folder must still stand in it
        number(made(), n).save(".")
        assert numbered(Path()) == n and Path.cwd() == here.resolve()
    link = tmp_path / "link"
    link.symlink_to(here)
    monkeypatch.chdir(tmp_path)
    number(made(), 3).save(link)
    assert link.is_symlink() and numbered(link) == numbered(here) == 3
    assert hidden(tmp_path) == []
