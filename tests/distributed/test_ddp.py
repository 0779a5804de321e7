"""DistributedDataParallel: two processes decide alike at every step, and as one process with the same global batch."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pair import Pair
from runs import STEPS, Run, assert_alike, made, train

from rankwise.errors import StateError

WAYS = {
    "plain": {},
    "unused": {"options": {"find_unused_parameters": True}},
    "bucket-view": {"options": {"gradient_as_bucket_view": True}},
    "static-graph": {"options": {"static_graph": True}},
    "checkpointing": {"checkpointing": True},
    "accumulation": {"accumulation": 2},
    "plain-branch": {"plain_branch": True},
}


@pytest.mark.parametrize("method", ["lora", "adalora", "adalora-paper", "adalora-raw", "aflora", "aflora-quantile"])
def test_two_processes_decide_as_one(pair: Pair, method: str) -> None:
    alone = train(Run(method))
    first, second = pair.run(train, Run(method, "ddp"))
    assert all(gap > 1e-2 for gap in alone.gaps), "the case has near-ties; it proves nothing"
    assert len({str(d) for d in alone.decisions}) > 2 or method == "lora"
    assert_alike(first, second, exactly=True)
    assert_alike(first, alone, exactly=False)


@pytest.mark.parametrize("way", WAYS)
def test_what_freezes_stands_still(pair: Pair, way: str) -> None:
    """It keeps `requires_grad`, for the reducer waits for it; weight decay and moments do not move it."""
    run = Run("aflora", "ddp", **WAYS[way])
    alone = train(replace(run, wrap="none", options={}))
    first, second = pair.run(train, run)
    assert len(first.decisions[-1][1]) == 6 and not first.alive
    assert all(first.requires_grad) and not any(alone.requires_grad)
    assert_alike(first, second, exactly=True)
    assert_alike(first, alone, exactly=False)


def test_a_head_trains_beside(pair: Pair) -> None:
    alone = train(Run("adalora", head=True))
    first, second = pair.run(train, Run("adalora", "ddp", head=True))
    assert_alike(first, second, exactly=True)
    assert_alike(first, alone, exactly=False)


def test_an_infinite_gradient_of_one_process_voids_the_step_of_all(pair: Pair) -> None:
    first, second = pair.run(train, Run("adalora", "ddp", poisoned=6))
    skipped = [(e["step"], e["names"]) for e in first.lines if e["event"] == "skipped_non_finite"]
    assert [step for step, _ in skipped] == [6] and skipped[0][1]
    assert_alike(first, second, exactly=True)
    assert_alike(first, train(Run("adalora", poisoned=6)), exactly=False)


@pytest.mark.parametrize("method", ["lora", "adalora", "aflora"])
@pytest.mark.parametrize("step", [2, 9, 20])
def test_a_run_continues_bit_for_bit(pair: Pair, method: str, step: int, tmp_path: Path) -> None:
    run = Run(method, "ddp", save_at=step, folder=str(tmp_path / "adapter"))
    through, _ = pair.run(train, run)
    first, second = pair.run(train, replace(run, save_at=None, resume_from=run.folder))
    assert_alike(first, second, exactly=True)
    assert first.decisions == through.decisions[step + 1 :]
    assert all(torch.equal(weight, through.weights[name]) for name, weight in first.weights.items())


def test_the_first_process_alone_writes(pair: Pair, tmp_path: Path) -> None:
    folders = pair.run(written_by, str(tmp_path))
    assert folders == (True, False)


def written_by(folder: str) -> bool:
    """Whether this process, saving to a folder of its own, wrote it; and its history."""

    mine = Path(folder) / str(dist.get_rank())
    adaptation, _ = made(Run("adalora", "ddp"))
    optimizer = torch.optim.AdamW(adaptation.parameters())
    with adaptation.attached(optimizer, STEPS, history=mine / "history.jsonl"):
        pass
    adaptation.save(mine / "adapter")
    assert (mine / "adapter").exists() == (mine / "history.jsonl").exists()
    return (mine / "adapter" / "adapter.safetensors").exists()


def test_compaction_inside_a_run_is_refused(pair: Pair) -> None:
    for said in pair.run(refusals):
        assert len(said) == 2 and all("compact" in message for message in said)


def refusals() -> list[str]:
    import rankwise as rw
    import toy

    said = []
    for settings in ({"compact_at_end_of_budget": True}, {}):
        adaptation = rw.adapt(toy.mlp(), rw.AdaLoRA(rank=4, target_rank=2, **settings))
        optimizer = torch.optim.AdamW(adaptation.parameters())
        try:
            with adaptation.attached(optimizer, STEPS):
                adaptation.compact()
        except StateError as error:
            said.append(str(error))
    return said


def test_fsdp_that_was_asked_for_and_not_given_is_an_error(pair: Pair) -> None:
    assert all("asked for FSDP" in said for said in pair.run(unsharded))


def unsharded() -> str:
    adaptation, _ = made(Run("adalora", "ddp"))
    optimizer = torch.optim.AdamW(adaptation.parameters())
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    try:
        with adaptation.attached(optimizer, STEPS):
            return ""
    except StateError as error:
        return str(error)
    finally:
        del os.environ["ACCELERATE_USE_FSDP"]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_checkpoint_that_one_process_cannot_write_is_none(pair: Pair, tmp_path: Path, failing: int) -> None:
    target = tmp_path / "checkpoint-5"
    said = pair.run(written_together, str(target), failing)
    assert all("disk full" in message for message in said)
    assert not list(tmp_path.iterdir())
    assert pair.run(written_together, str(target), None) == ("", "")
    assert sorted(p.name for p in target.iterdir()) == ["0", "1"]


def written_together(target: str, failing: int | None) -> str:
    from rankwise.train.shared_folder import shared_folder

    try:
        with shared_folder(Path(target)) as staging:
            if dist.get_rank() == failing:
                raise OSError("disk full")
            (staging / str(dist.get_rank())).touch()
    except (OSError, StateError) as error:
        return str(error)
    return ""
