"""From one method to another: Δ stays what it was, in every layer, by the folders alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
import toy
from contract.methods import BY_NAME as ROWS
from contract.models import ENCODER
from contract.runs import STEPS, outputs, train, trained
from rankwise.cli import main
from rankwise.io import folder as files
from rankwise.io.convert import convert
from rankwise.low_rank_op import Factors
from rankwise.methods import METHODS

SOURCES = [
    *("lora", "lora-normal-rs", "adalora", "adalora-paper", "pruned-lora", "aflora", "aflora-all", "freezing-adalora"),
    *("svd-lora", "sora", "vera", "vera-saved"),
]
TO = ["lora", "svd-lora", "adalora", "pruned-lora", "aflora", "freezing-adalora", "sora"]


def saved(name: str, folder: Path, *, compact: bool = False) -> tuple[rw.Adaptation, dict[str, Tensor]]:
    """A trained adapter in a folder, and Δ of its live ranks by layer."""
    adaptation = trained(ENCODER, ROWS[name].method)
    if compact:
        adaptation.compact()
    adaptation.save(folder)
    return adaptation, {n: live_delta(a.factors(), a.live) for n, a in adaptation.adapters.items()}


def live_delta(factors: Factors, live: Tensor) -> Tensor:
    """Without the dead ranks: their λ may have grown back."""
    up, down = factors.folded()
    return (up[:, live] @ down[live]).float()


def assert_same(deltas: dict[str, Tensor], adaptation: rw.Adaptation) -> None:
    for name, delta in deltas.items():
        own = adaptation.adapters[name].delta() if name in adaptation.adapters else torch.zeros_like(delta)
        assert torch.linalg.norm(own - delta) <= 1e-6 * torch.linalg.norm(delta) + 1e-12, name


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("name", SOURCES)
def test_the_update_is_the_same(name: str, to: str, tmp_path: Path) -> None:
    _, deltas = saved(name, tmp_path / "in")
    adaptation = rw.load(ENCODER.build(), tmp_path / "in", method=to)
    assert adaptation.method.name == to
    assert_same(deltas, adaptation)
    if to != ROWS[name].method.name:
        assert "no update differs by more than" in adaptation.notes[0]
    if ROWS[name].method.name != to:
        train(adaptation, ENCODER.batch())  # a new run, whatever the old one was
    adaptation.save(tmp_path / "out")
    assert rw.load(ENCODER.build(), tmp_path / "out").ranks() == adaptation.ranks()


def test_triplets_are_orthonormal(tmp_path: Path) -> None:
    """A thin SVD: AdaLoRA's penalty is 0 at the start, and the largest λ stands first."""
    saved("lora", tmp_path)
    for adapter in rw.load(ENCODER.build(), tmp_path, method="adalora").adapters.values():
        P, lam, Q = adapter.triplet()
        torch.testing.assert_close(P.T @ P, torch.eye(4), rtol=0, atol=1e-6)
        torch.testing.assert_close(Q @ Q.T, torch.eye(4), rtol=0, atol=1e-6)
        assert torch.equal(lam, lam.sort(descending=True).values)
        full = torch.linalg.svdvals(adapter.delta())[:4]
        torch.testing.assert_close(lam * adapter.scale, full, rtol=1e-4, atol=1e-8)


def test_there_and_back(tmp_path: Path) -> None:
    model, batch = ENCODER.build(), ENCODER.batch()
    _, _ = saved("lora", tmp_path / "lora")
    rw.load(model, tmp_path / "lora")
    wanted = outputs(model, batch)
    rw.load(ENCODER.build(), tmp_path / "lora", method="adalora").save(tmp_path / "adalora")
    back = ENCODER.build()
    rw.load(back, tmp_path / "adalora", method="lora")
    torch.testing.assert_close(outputs(back, batch), wanted, rtol=1e-5, atol=1e-6)


def test_a_converted_lora_is_allocated_like_any_adalora(tmp_path: Path) -> None:
    saved("lora", tmp_path)
    method = rw.AdaLoRA(rank=6, target_rank=2, warmup=2, cooldown=4, every=2)
    adaptation = rw.load(ENCODER.build(), tmp_path, method=method)
    assert set(adaptation.ranks().values()) == {6}  # four from the LoRA, two that begin at λ = 0
    assert all(int((a.lam != 0).sum()) == 4 for a in adaptation.adapters.values())
    train(adaptation, ENCODER.batch(), STEPS)
    assert sum(adaptation.ranks().values()) == 2 * len(adaptation.ranks())


def test_a_converted_sora_learns_with_all_its_ranks(tmp_path: Path) -> None:
    """Gates of 1 where the LoRA's ranks went; the two that are new add nothing and have a gradient."""
    _, deltas = saved("lora", tmp_path)
    adaptation = rw.load(ENCODER.build(), tmp_path, method=rw.SoRA(rank=6, threshold=1e-4))
    assert_same(deltas, adaptation)
    for adapter in adaptation.adapters.values():
        assert torch.equal(adapter.g[:4], torch.ones(4)) and bool(adapter.live.all())
        assert not adapter.B[:, 4:].any()
    train(adaptation, ENCODER.batch(), STEPS)
    assert all(bool(a.B[:, 4:].any()) for a in adaptation.adapters.values())
    assert set(adaptation.ranks().values()) == {6}


def test_methods_that_are_no_thin_factors_are_refused(tmp_path: Path) -> None:
    saved("lora", tmp_path)
    for name in sorted(set(METHODS) - set(TO) - {"vera"}):
        with pytest.raises(rw.ConfigError, match=f"{name} is no low-rank method"):
            rw.load(ENCODER.build(), tmp_path, method=name)


def test_ranks_that_would_be_cut_are_refused(tmp_path: Path) -> None:
    saved("lora", tmp_path)
    model = ENCODER.build()
    modules = dict(model.named_modules())
    with pytest.raises(rw.ConfigError, match="has 4 ranks, more than the rank=3"):
        rw.load(model, tmp_path, method=rw.LoRA(rank=3))
    with pytest.raises(rw.ConfigError, match="A and B are drawn from a seed"):
        rw.load(model, tmp_path, method="vera")
    with pytest.raises(rw.ConfigError, match="Did you mean 'adalora'"):
        rw.load(model, tmp_path, method="adalor")
    assert dict(model.named_modules()) == modules


def test_dead_ranks_and_layers_stay_behind(tmp_path: Path) -> None:
    adaptation, deltas = saved("adalora", tmp_path / "in")
    name = next(iter(adaptation.adapters))
    adapter = adaptation.adapters[name]
    adapter.live.zero_()
    with torch.no_grad():
        adapter.lam.fill_(0.5)  # grown back behind the mask
    adaptation.save(tmp_path / "in")
    converted = rw.load(ENCODER.build(), tmp_path / "in", method="lora")
    assert name not in converted.adapters
    assert set(converted.adapters) == {n for n, rank in adaptation.ranks().items() if rank}
    assert_same({n: d for n, d in deltas.items() if n != name}, converted)
    assert any(name in note and "left out" in note for note in converted.notes)
    assert any("grown back" in note for note in converted.notes)
    assert any("old run" in note for note in converted.notes)


def test_what_trained_in_full_stays_as_it_is(tmp_path: Path) -> None:
    adaptation, _ = saved("lora", tmp_path)
    converted = rw.load(ENCODER.build(), tmp_path, method="adalora")
    assert list(converted.trained) == list(adaptation.trained)
    assert all(torch.equal(converted.trained[n], p) for n, p in adaptation.trained.items())


def test_to_itself_nothing_changes(tmp_path: Path) -> None:
    saved("adalora", tmp_path)
    before = files.read(tmp_path)
    after, [words] = convert(tmp_path, before, {"name": "adalora"})
    assert after is before and "already" in words


def test_the_full_matrix_is_never_made() -> None:
    """A matrix of this shape would be 40 GB; its update of rank 2 has an SVD in a moment."""
    d_out, d_in = 100_000, 100_000
    factors = Factors(torch.randn(d_out, 2), torch.randn(2, d_in), scale=0.5)
    plain = factors.folded()
    P, sigma, Q = plain.svd()
    rows, columns = torch.arange(5), torch.arange(7)
    torch.testing.assert_close(
        (P[rows] * sigma) @ Q[:, columns], 0.5 * factors.up[rows].double() @ factors.down[:, columns].double()
    )
    assert plain.norm() == pytest.approx(float(torch.linalg.norm(sigma)))


def test_a_wide_rank_becomes_the_layer_s_own(tmp_path: Path) -> None:
    """VeRA's rank may be above the layer's: as a LoRA it has no more than the layer can have."""
    saved("vera", tmp_path)
    converted = rw.load(ENCODER.build(), tmp_path, method="lora")
    assert set(converted.ranks().values()) == {32}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = rw.adapt(toy.mlp(), rw.LoRA(rank=4, targets=["0", "2"], also_train=["4"]))
    nn.init.normal_(source.adapters["0"].B)
    source.save(tmp_path / "in")
    out = tmp_path / "out"
    assert main(["convert", str(tmp_path / "in"), str(out), "--to", "{name: adalora, target_rank: 3}"]) == 0
    said = capsys.readouterr().out
    assert "lora became adalora: 2 layers, 8 ranks" in said and str(out) in said
    adaptation = rw.load(toy.mlp(), out)
    assert (adaptation.method.name, adaptation.method.rank, adaptation.method.target_rank) == ("adalora", 4, 3)
    torch.testing.assert_close(adaptation.adapters["0"].delta(), source.adapters["0"].delta(), rtol=1e-5, atol=1e-6)
    assert main(["convert", str(tmp_path / "in"), str(out), "--to", "lora"]) == 2
    assert "holds something already" in capsys.readouterr().err


def test_the_command_takes_a_run(tmp_path: Path) -> None:
    rw.adapt(toy.mlp(), rw.LoRA(rank=4, targets=["0", "2"])).save(tmp_path / "run" / "adapter")
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "adalora"]) == 0
    assert rw.load(toy.mlp(), tmp_path / "out").ranks() == {"0": 4, "2": 4}


COMMANDS = {
    "no-method": (["--to", "dora"], "unknown method"),
    "setting": (["--to", "{name: adalora, colour: red}"], "adalora has no setting"),
    "type": (["--to", "{name: adalora, target_rank: much}"], "does not take"),
    "yaml": (["--to", "{name: [}"], "not YAML"),
    "alpha": (["--to", "lora", "--alpha", "8"], "checkpoints of loralib"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_refuses(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, reason = COMMANDS[name]
    rw.adapt(toy.mlp(), rw.LoRA(rank=4, targets=["0", "2"])).save(tmp_path / "in")
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out"), *options]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_claims_what_it_does_not_hold(tmp_path: Path) -> None:
    rw.adapt(toy.mlp(), rw.LoRA(rank=4, targets=["0", "2"])).save(tmp_path)
    broken = files.read(tmp_path)
    broken = replace(broken, layers={n: layer | {"shape": [2**30, 2**30]} for n, layer in broken.layers.items()})
    with pytest.raises(rw.FolderError, match="holds far fewer"):
        convert(tmp_path, broken, {"name": "adalora"})
