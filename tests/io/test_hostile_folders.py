"""No folder, whoever made it, does more than be refused: quickly, in little memory, with the model as it was."""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from torch import nn

import rankwise as rw
import toy
from rankwise.adapter import Method
from rankwise.cli import main

CORPUS = hostile.corpus()
SAMPLE = set(random.Random(1).sample(sorted(CORPUS), 45))
SHORT = {"targets": ["0", "2"], "also_train": ["4"]}
SCHEDULE = {"warmup": 2, "cooldown": 8, "every": 2}
METHODS: dict[str, Method] = {
    "lora": rw.LoRA(rank=3, **SHORT),
    "adalora": rw.AdaLoRA(rank=4, target_rank=2, **SHORT, **SCHEDULE),
    "aflora": rw.AFLoRA(rank=4, scope="all", **SHORT, **SCHEDULE),
}
SECONDS, BYTES = 2.0, 200 * 2**20
DANGEROUS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
    "exec",
    "compile",
)
_watched: list[list[str]] = []


def _watch(event: str, arguments: Any) -> None:
    if _watched and event.startswith(DANGEROUS):
        _watched[-1].append(f"{event} {arguments}")


sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good folder for each method: "lora" trained, the others in the middle of their run."""
    place = tmp_path_factory.mktemp("good")
    for name, method in METHODS.items():
        adaptation = rw.adapt(toy.mlp(), method)
        optimizer = torch.optim.AdamW(adaptation.parameters(), lr=0.01)
        with adaptation.attached(optimizer, total_steps=20):
            for example in toy.stream(9):
                toy.step(adaptation, optimizer, example)
            adaptation.save(place / name)
    assert len(json.loads((place / "aflora" / "rankwise.json").read_text())["frozen"]) > 0
    assert main(["inspect", str(place / "lora")]) == 0  # a command imports what it needs when it is first called
    return place


def snapshot(model: nn.Module) -> dict[str, Any]:
    modules = {n: (id(m), m.training, len(m._forward_hooks)) for n, m in model.named_modules()}
    flags = {n: (id(p), p.requires_grad, p.grad) for n, p in model.named_parameters()}
    return {"modules": modules, "flags": flags, "bits": {n: t.numpy().tobytes() for n, t in model.state_dict().items()}}


@contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """What the block costs and runs: {"seconds": of the processor, "bytes": peak above the start, "ran": [...]}."""
    cost: dict[str, Any] = {}
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, began = memory("VmRSS"), time.process_time()
    _watched.append([])
    signal.alarm(30)
    try:
        yield cost
    finally:
        signal.alarm(0)
        cost |= {"seconds": time.process_time() - began, "bytes": memory("VmHWM") - before, "ran": _watched.pop()}


def memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def copied(good: Path, name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good / name, tmp_path / "folder"))


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 300 and len(SAMPLE) >= 40


@pytest.mark.parametrize("name", hostile.GOOD)
def test_the_good_folders_are_good(name: str, good: Path, tmp_path: Path) -> None:
    adaptation = rw.load(toy.mlp(), copied(good, name, tmp_path))
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=0.01)
    with adaptation.attached(optimizer, total_steps=20):
        toy.step(adaptation, optimizer, next(toy.stream(1)))


@pytest.mark.parametrize(
    "how", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in sorted(CORPUS)]
)
def test_refused(how: str, good: Path, tmp_path: Path) -> None:
    name, spoil = CORPUS[how]
    folder = copied(good, name, tmp_path)
    spoil(folder)
    model = toy.mlp()
    before = snapshot(model)
    with watched() as cost, pytest.raises(rw.RankwiseError) as refused:
        rw.load(model, folder)
    assert cost["ran"] == [] and not (tmp_path / hostile.CANARY).exists()
    assert snapshot(model) == before
    assert cost["seconds"] < SECONDS and cost["bytes"] < BYTES, cost
    assert len(str(refused.value)) < 2000 and "\x1b" not in str(refused.value)


def test_ranks_that_the_file_has_no_numbers_for_are_not_built(tmp_path: Path) -> None:
    """A layer begins with the ranks of its method, and is taken down to those that are left."""
    wide = lambda: nn.Sequential(nn.Linear(16, 16_384), nn.Linear(16_384, 16))  # noqa: E731
    folder = tmp_path / "adapter"
    rw.adapt(wide(), rw.LoRA(rank=1)).save(folder)
    description = json.loads((folder / "rankwise.json").read_text())
    description["method"]["rank"] = 8192
    (folder / "rankwise.json").write_text(json.dumps(description))
    model = wide()
    with watched() as cost, pytest.raises(rw.FolderError, match=r"began with 8,192 ranks, and 256 are possible"):
        rw.load(model, folder)
    assert cost["bytes"] < BYTES


@pytest.mark.parametrize("name", ["adalora", "aflora"])
def test_a_run_without_room_is_refused(name: str, good: Path, tmp_path: Path) -> None:
    folder = copied(good, name, tmp_path)
    description = json.loads((folder / "rankwise.json").read_text())
    description["run"]["total_steps"] = 1
    (folder / "rankwise.json").write_text(json.dumps(description))
    with pytest.raises(rw.FolderError, match="its run cannot be"):
        rw.load(toy.mlp(), folder)


@pytest.mark.parametrize("how", sorted(n for n in SAMPLE if not n.startswith("folder")))
def test_inspect_does_not_fall_over(how: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a model less can be found out; what is shown must then be shown without harm."""
    name, spoil = CORPUS[how]
    folder = copied(good, name, tmp_path)
    spoil(folder)
    with watched() as cost:
        assert main(["inspect", str(folder)]) in (0, 2)
    assert cost["ran"] == [] and cost["seconds"] < SECONDS and cost["bytes"] < BYTES, cost
    said = capsys.readouterr()
    assert "Traceback" not in said.err and "\x1b]" not in said.out + said.err


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(s, marks=pytest.mark.slow) for s in range(4, 40))])
def test_flipped_bytes(seed: int, good: Path, tmp_path: Path) -> None:
    """Any byte may be another one: the folder is refused or loads, and nothing else happens."""
    chance = random.Random(seed)
    for name in hostile.GOOD:
        for file in (file for file in hostile.FILES if (good / name / file).exists()):
            folder = Path(shutil.copytree(good / name, tmp_path / f"{name}-{file}"))
            content = bytearray((folder / file).read_bytes())
            for _ in range(chance.choice((1, 1, 2, 8))):
                content[chance.randrange(min(len(content), 2500))] = chance.randrange(256)
            (folder / file).write_bytes(content)
            model = toy.mlp()
            before = snapshot(model)
            with watched() as cost:
                try:
                    rw.load(model, folder)
                except rw.RankwiseError:
                    assert snapshot(model) == before
            assert cost["ran"] == [] and cost["seconds"] < SECONDS and cost["bytes"] < BYTES


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*(.*)*(.*)*=", "(0|0|2)*(0|0|2)*x", "(?i)[ -~]+"])
def test_a_saved_pattern_is_not_run(pattern: str, good: Path, tmp_path: Path) -> None:
    """An adapter is loaded by the list of its layers: one pattern can take the age of the universe."""
    folder = copied(good, "lora", tmp_path)
    names = [f"{'a' * 40}{i}!" for i in range(2)]
    description = json.loads((folder / "rankwise.json").read_text())
    description["method"]["targets"] = pattern
    description["method"]["exclude"] = pattern
    (folder / "rankwise.json").write_text(json.dumps(description))
    model = toy.mlp()
    for name in names:
        model.add_module(name, nn.Linear(3, 3))
    with watched() as cost:
        assert set(rw.load(model, folder).ranks()) == {"0", "2"}
    assert cost["seconds"] < SECONDS


def test_links_inside_the_cache_of_the_hub(good: Path, tmp_path: Path) -> None:
    """snapshots/<revision>/<file> is a link to blobs/<hash> there; a link to anywhere else is refused."""
    snapshot_, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot_.mkdir(parents=True)
    blobs.mkdir()
    for file in (good / "lora").iterdir():
        shutil.copy(file, blobs / f"hash-of-{file.name}")
        (snapshot_ / file.name).symlink_to(Path("..", "..", "blobs", f"hash-of-{file.name}"))
    assert rw.load(toy.mlp(), snapshot_).ranks() == {"0": 3, "2": 3}
    shutil.move(blobs / "hash-of-rankwise.json", tmp_path / "elsewhere")
    (blobs / "hash-of-rankwise.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(rw.FolderError, match="leads out of its folder"):
        rw.load(toy.mlp(), snapshot_)


def test_no_permission(good: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("everything is permitted to root")
    folder = copied(good, "lora", tmp_path)
    (folder / "rankwise.json").chmod(0)
    with pytest.raises(rw.FolderError, match="cannot be read"):
        rw.load(toy.mlp(), folder)


def test_the_largest_adapter_stays_within_the_bounds(tmp_path: Path) -> None:
    """What is refused as absurd is far from what somebody trains."""
    from rankwise.io import description, folder, untrusted

    layers = {f"model.layers.{i // 384}.mlp.experts.{i % 384}.down_proj": [7168, 2048] for i in range(2_000)}
    text = json.dumps({n: {"rank": 64, "shape": s} for n, s in layers.items()}, indent=1)
    assert len(text) < untrusted.MOST_JSON
    assert 64 * len(layers) < description.MOST_RANKS and text.count("{") + text.count("[") < untrusted.MOST_LISTS
    assert 6 * len(layers) < folder.MOST_TENSORS  # AdaLoRA's state
    entry = len('"model.layers.60.mlp.experts.255.down_proj::lam":{"dtype":"F32","shape":[64],"data_offsets":[0,256]},')
    assert entry * 6 * len(layers) < folder.MOST_HEADER


def test_resource_limits_are_not_touched() -> None:
    """The bounds hold by what is read, not by limits put upon the process of the user."""
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.getrlimit(resource.RLIMIT_AS)[1]
