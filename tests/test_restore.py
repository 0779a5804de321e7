"""`restore` goes back to what was saved, wholly, or changes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import rankwise as rw
from rankwise.adapter import Method
from toy import mlp, step, stream

TOTAL = 24
ADALORA = rw.AdaLoRA(rank=4, target_rank=2, warmup=2, cooldown=8, every=2)
AFLORA = rw.AFLoRA(rank=2, scope="all", warmup=2, cooldown=8, every=2)


def trained(method: Method, steps: int, adaptation: rw.Adaptation | None = None) -> rw.Adaptation:
    """Over the next `steps` steps of a run of TOTAL."""
    adaptation = adaptation or rw.adapt(mlp(), method)
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=1e-2)
    with adaptation.attached(optimizer, total_steps=TOTAL):
        done = adaptation.attachment.steps
        for example in list(stream(TOTAL))[done : done + steps]:
            step(adaptation, optimizer, example)
    return adaptation


def state(adaptation: rw.Adaptation) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in adaptation.model.state_dict().items()}


def assert_same(adaptation: rw.Adaptation, expected: dict[str, Tensor]) -> None:
    assert state(adaptation).keys() == expected.keys()
    for name, tensor in state(adaptation).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("method", [ADALORA, AFLORA], ids=lambda m: m.name)
def test_back_to_an_earlier_moment_and_on(method: Method, tmp_path: Path) -> None:
    adaptation = trained(method, 6)
    adaptation.save(tmp_path / "early")
    frozen = adaptation.frozen()
    trained(method, 12, adaptation)
    if method is AFLORA:
        assert len(adaptation.frozen()) > len(frozen)

    loaded = rw.load(mlp(), tmp_path / "early")
    adaptation.restore(tmp_path / "early")
    assert adaptation.frozen() == loaded.frozen() == frozen
    trained(method, 12, adaptation)
    trained(method, 12, loaded)
    assert_same(adaptation, state(loaded))
    assert adaptation.frozen() == loaded.frozen()


def test_without_its_run_everything_trains_again(tmp_path: Path) -> None:
    adaptation = trained(AFLORA, TOTAL)
    assert adaptation.frozen()
    adaptation.save(tmp_path / "adapter")
    adaptation.restore(tmp_path / "adapter", resume=False)
    assert adaptation.frozen() == []
    assert all(p.requires_grad for p in adaptation.parameters())


def test_to_the_compacted_state_of_the_same_run(tmp_path: Path) -> None:
    adaptation, compacted = trained(ADALORA, TOTAL), trained(ADALORA, TOTAL)
    compacted.compact()
    compacted.save(tmp_path / "adapter")
    adaptation.restore(tmp_path / "adapter")
    assert adaptation.ranks() == compacted.ranks()
    assert_same(adaptation, state(compacted))


@pytest.mark.parametrize("compacts", [False, True], ids=["as it is", "compacted"])
@pytest.mark.parametrize("method", [ADALORA, replace(ADALORA, score="raw_sensitivity"), AFLORA], ids=["a", "b", "c"])
def test_what_is_loaded_and_saved_again_goes_on_too(method: Method, compacts: bool, tmp_path: Path) -> None:
    adaptation = trained(method, 13)
    adaptation.save(tmp_path / "first")
    loaded = rw.load(mlp(), tmp_path / "first")
    if compacts:
        loaded.compact()
    loaded.save(tmp_path / "second")
    again = rw.load(mlp(), tmp_path / "second")
    for continued in (loaded, again):
        trained(method, TOTAL - 13, continued)
    assert_same(again, state(loaded))
    assert again.ranks() == loaded.ranks() and again.frozen() == loaded.frozen()
    if not compacts:  # else no rank comes back that had been dropped
        trained(method, TOTAL - 13, adaptation)
        assert_same(loaded, state(adaptation))


@pytest.mark.parametrize("damage", ["nan", "frozen"])
def test_a_folder_that_is_broken_changes_nothing(damage: str, tmp_path: Path) -> None:
    compacted = trained(replace(ADALORA, compact_at_end_of_budget=True), TOTAL)
    compacted.save(tmp_path / "adapter")
    path = tmp_path / "adapter" / ("adapter.safetensors" if damage == "nan" else "rankwise.json")
    if damage == "nan":
        tensors = load_file(path)
        next(t for n, t in sorted(tensors.items()) if n.endswith("::P") and t.numel())[0] = torch.nan
        save_file(tensors, path)
    else:
        path.write_text(path.read_text().replace('"frozen": []', '"frozen": ["0.live"]'))
    adaptation = trained(replace(ADALORA, compact_at_end_of_budget=True), 6)
    before, ranks = state(adaptation), {n: a.rank for n, a in adaptation.adapters.items()}
    with pytest.raises(rw.FolderError, match="NaN or infinite" if damage == "nan" else "lists as frozen"):
        adaptation.restore(tmp_path / "adapter")
    assert_same(adaptation, before)
    assert {n: a.rank for n, a in adaptation.adapters.items()} == ranks
    trained(ADALORA, 2, adaptation)  # its own run goes on


def test_not_while_an_optimizer_is_attached(tmp_path: Path) -> None:
    adaptation = trained(ADALORA, 4)
    adaptation.save(tmp_path / "adapter")
    optimizer = torch.optim.AdamW(adaptation.parameters())
    with (
        adaptation.attached(optimizer, total_steps=TOTAL),
        pytest.raises(rw.StateError, match="an optimizer is attached"),
    ):
        adaptation.restore(tmp_path / "adapter")
    assert adaptation.controller is not None
