"""FSDP2: adapters are DTensors, and two processes decide alike at every step, and as one process does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pair import Pair
from runs import METHODS, STEPS, Net, Run, assert_alike, made, train
from torch.distributed.tensor import DTensor

import rankwise as rw
import toy
from sampled import some

SHARDED = {
    "layers": {"wrap": "fsdp2"},
    "one-unit": {"wrap": "fsdp2-root"},
    "across-ranks": {"wrap": "fsdp2", "long_side": True},
    "checkpointing": {"wrap": "fsdp2", "checkpointing": True},
    "plain-branch": {"wrap": "fsdp2", "plain_branch": True},
}


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_decide_as_one(pair: Pair, method: str) -> None:
    alone = train(Run(method))
    first, second = pair.run(train, Run(method, "fsdp2"))
    assert all(gap > 1e-2 for gap in alone.gaps), "the case has near-ties; it proves nothing"
    assert_alike(first, second, exactly=True)
    assert_alike(first, alone, exactly=False)


@pytest.mark.parametrize("way", SHARDED)
@pytest.mark.parametrize("method", some(["adalora", "adalora-odd", "aflora"]))
def test_however_it_is_sharded(pair: Pair, method: str, way: str) -> None:
    run = Run(method, **SHARDED[way])
    first, second = pair.run(train, run)
    assert not first.alive and not any(first.requires_grad)
    assert_alike(first, second, exactly=True)
    assert_alike(first, train(replace(run, wrap="none")), exactly=False)


def test_a_head_trains_beside(pair: Pair) -> None:
    first, second = pair.run(train, Run("adalora", "fsdp2", head=True))
    assert_alike(first, second, exactly=True)
    assert_alike(first, train(Run("adalora", head=True)), exactly=False)


def test_an_infinite_gradient_in_one_slice_voids_the_step_of_all(pair: Pair) -> None:
    first, second = pair.run(train, Run("adalora", "fsdp2", poisoned=6))
    assert [e["step"] for e in first.lines if e["event"] == "skipped_non_finite"] == [6]
    assert_alike(first, second, exactly=True)
    assert all(pair.run(skips_a_slice))


def skips_a_slice() -> bool:
    """Whether every process skips a step in which the slice of one alone is infinite, and names the same tensor."""
    adaptation, net = made(Run("adalora", "fsdp2"))
    optimizer = torch.optim.AdamW(adaptation.parameters())
    with adaptation.attached(optimizer, STEPS):
        net(next(toy.stream(1))[0]).sum().backward()
        if dist.get_rank() == 1:
            adaptation.adapters["body.2"].Q.grad.to_local()[0, 0] = torch.nan  # type: ignore[union-attr, operator]
        optimizer.step()
    (line,) = [e for e in adaptation.history.lines if e["event"] == "skipped_non_finite"]
    return not optimizer.state and line["names"] == ["body.2.Q"]


@pytest.mark.parametrize("method", ["lora", "adalora", "adalora-raw", "aflora"])
@pytest.mark.parametrize("step", some([9, 2]))
def test_a_run_continues_bit_for_bit(pair: Pair, method: str, step: int, tmp_path: Path) -> None:
    run = Run(method, "fsdp2", save_at=step, folder=str(tmp_path / "adapter"))
    through, _ = pair.run(train, run)
    first, second = pair.run(train, replace(run, save_at=None, resume_from=run.folder))
    assert_alike(first, second, exactly=True)
    assert first.decisions == through.decisions[step + 1 :]
    assert all(torch.equal(weight, through.weights[name]) for name, weight in first.weights.items())


@pytest.mark.parametrize("method", ["adalora", "aflora"])
def test_what_is_saved_is_whole(pair: Pair, method: str, tmp_path: Path) -> None:
    """One process loads it, bit for bit."""
    run = Run(method, "fsdp2", head=True, save_at=STEPS - 1, folder=str(tmp_path / "adapter"))
    first, _ = pair.run(train, run)
    net = Net(checkpointing=False)
    loaded = rw.load(net, tmp_path / "adapter")
    assert (first.decisions[-1][0], first.decisions[-1][1]) == (
        {name: "".join("01"[m] for m in a.live.tolist()) for name, a in loaded.adapters.items()},
        loaded.frozen(),
    )
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, first.weights[name]), name


def test_restore_fills_the_slices(pair: Pair, tmp_path: Path) -> None:
    pair.run(train, Run("adalora", "fsdp2", save_at=9, folder=str(tmp_path / "adapter")))
    assert all(pair.run(restored, str(tmp_path / "adapter")))


def restored(folder: str) -> bool:
    adaptation, _ = made(Run("adalora", "fsdp2"))
    adaptation.restore(folder)
    alone = rw.load(Net(checkpointing=False), folder)
    pairs = [
        (one, other)
        for name, adapter in adaptation.adapters.items()
        for one, other in zip(adapter.parameters(False), alone.adapters[name].parameters(False), strict=True)
    ]
    return all(isinstance(one, DTensor) and torch.equal(one.full_tensor(), other) for one, other in pairs)


def test_what_needs_whole_weights_is_refused(pair: Pair) -> None:
    for said in pair.run(refusals):
        assert len(said) == 3 and all("in one process" in message for message in said)


def refusals() -> list[str]:
    said = []
    adaptation, _ = made(Run("adalora", "fsdp2"))
    optimizer = torch.optim.AdamW(adaptation.parameters())
    for refused in (adaptation.merge, adaptation.compact):
        try:
            refused()
        except rw.StateError as error:
            said.append(str(error))
    try:
        with adaptation.attached(optimizer, STEPS):
            adaptation.compact()
    except rw.StateError as error:
        said.append(str(error))
    return said


def test_an_optimizer_that_is_not_attached_is_refused(pair: Pair) -> None:
    """fully_shard puts other parameters into the layers; they are watched all the same."""
    assert all("not attached" in said for said in pair.run(unattached))


def unattached() -> str:
    adaptation, net = made(Run("adalora", "fsdp2"))
    optimizer = torch.optim.AdamW(adaptation.parameters())
    net(next(toy.stream(1))[0]).sum().backward()
    try:
        optimizer.step()
    except rw.StateError as error:
        return str(error)
    return ""


R, D_IN, D_OUT = 4, (10, 16, 12), (16, 12, 7)  # of the toy's three layers


@pytest.mark.parametrize("long_side", [False, True])
def test_what_is_sent_is_what_the_documentation_says(pair: Pair, long_side: bool) -> None:
    """docs/distributed.md, in numbers of four bytes: per step, and more in a step that allocates."""
    grams = 3 * R**2 * (2 if long_side else 1)
    gathered = 0 if long_side else sum(R * d for d in D_IN)
    assert all(d % 2 == 0 for d in D_IN)  # else Q would be cut between its ranks all the same
    for reduced, whole, allocating in pair.run(sent, long_side):
        assert whole == {gathered}
        assert reduced == {1 + grams} and allocating == {1 + grams + 3 * 3 * R}


def sent(long_side: bool) -> tuple[set[int], set[int], set[int]]:
    """Numbers that are reduced in a step, gathered in a step, and reduced in a step that allocates."""
    adaptation, net = made(Run("adalora", "fsdp2", long_side=long_side))
    optimizer = torch.optim.AdamW(adaptation.parameters())
    counts = {"reduce": 0, "gather": 0}
    all_reduce, all_gather = dist.all_reduce, dist.all_gather

    def counted_reduce(tensor: torch.Tensor, *args: object, **kwargs: object) -> None:
        counts["reduce"] += tensor.numel()
        all_reduce(tensor, *args, **kwargs)

    def counted_gather(whole: list[torch.Tensor], tensor: torch.Tensor, *args: object) -> None:
        counts["gather"] += sum(t.numel() for t in whole)
        all_gather(whole, tensor, *args)

    seen: list[tuple[bool, int, int]] = []
    with adaptation.attached(optimizer, STEPS):
        for x, y in toy.stream(STEPS - 8):
            torch.nn.functional.mse_loss(net(x), y).backward()
            dist.all_reduce, dist.all_gather = counted_reduce, counted_gather  # type: ignore[assignment]
            optimizer.step()
            dist.all_reduce, dist.all_gather = all_reduce, all_gather
            optimizer.zero_grad()
            adaptation.history.flush()
            last = adaptation.history.lines[-1]
            seen.append(((last["event"], last["step"]) == ("allocated", len(seen)), counts["reduce"], counts["gather"]))
            counts = dict.fromkeys(counts, 0)
    reduced, allocating = ({r for due, r, _ in seen if due == wanted} for wanted in (False, True))
    return reduced, {g for _, _, g in seen}, allocating
