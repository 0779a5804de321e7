"""A long run costs no more at its end than at its beginning: memory and file handles stay flat."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

import rankwise as rw
import toy
from rankwise.adapter import Method
from rankwise.allocation.history import MOST_PENDING, History, SkippedNonFinite

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rankwise", "toy"])
STEPS, WARM = 4000, 800
SPAN: dict[str, Any] = {"warmup": 50, "cooldown": 50}
METHODS: dict[str, Method] = {
    "adalora": rw.AdaLoRA(rank=6, target_rank=2, targets=["0", "2", "4"], every=1, **SPAN),  # an event every step
    "adalora-held": rw.AdaLoRA(
        rank=6, target_rank=2, targets=["0", "2", "4"], every=5, mask="hold", score="raw_sensitivity", **SPAN
    ),
    "aflora": rw.AFLoRA(rank=4, scope="all", targets=["0", "2", "4"], every=3, **SPAN),
}


def usage() -> tuple[int, int]:
    """Resident bytes and open files of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    resident = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
    return resident, len(list(Path("/proc/self/fd").iterdir()))


def soak(method: Method, folder: Path, flushed: bool) -> None:
    """STEPS steps with decisions almost to the end, a save now and then; what that cost, as a file."""
    torch.set_num_threads(1)
    adaptation = rw.adapt(toy.mlp(), method)
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=1e-3)
    seen = []
    with adaptation.attached(optimizer, total_steps=STEPS, history=folder / "history.jsonl"):
        for step, example in enumerate(toy.stream(STEPS)):
            toy.step(adaptation, optimizer, example)
            if step % 100 == 99:
                with adaptation.disabled():
                    toy.loss_of(adaptation.model, example)
                if flushed:
                    adaptation.history.flush()
                adaptation.save(folder / "adapter")
                seen.append(usage())
    (folder / "usage.json").write_text(json.dumps(seen))


@pytest.mark.slow
@pytest.mark.parametrize("flushed", [True, False], ids=["flushed", "never-flushed"])
@pytest.mark.parametrize("name", METHODS)
def test_memory_and_file_handles_are_flat(name: str, flushed: bool, tmp_path: Path) -> None:
    process = PROCESSES.Process(target=soak, args=(METHODS[name], tmp_path, flushed))
    process.start()
    process.join()
    assert process.exitcode == 0
    measured = json.loads((tmp_path / "usage.json").read_text())[WARM // 100 :]
    resident, files = zip(*measured, strict=True)
    assert len(measured) * 100 >= 3000
    assert max(resident) <= 1.02 * resident[0] and min(resident) >= 0.98 * resident[0], resident
    assert len(set(files)) == 1, files
    assert (tmp_path / "history.jsonl").stat().st_size > 0


def test_a_history_with_a_file_keeps_nothing_in_memory(tmp_path: Path) -> None:
    history = History()
    history.write_to(tmp_path / "history.jsonl", 0)
    for step in range(3 * MOST_PENDING):
        history.add(SkippedNonFinite(step, ("a",)))
        assert len(history._pending) < MOST_PENDING and history._kept == []
    history.flush()
    assert [line["step"] for line in history.lines] == list(range(3 * MOST_PENDING))
    assert history._pending == history._kept == []
