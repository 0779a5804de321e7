"""The papers' ablations by name."""

from pathlib import Path

import pytest

import rankwise as rw
from contract.models import ENCODER
from rankwise.cli.config_file import config_from_dict, parse

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", rw.PRESETS)
def test_every_preset_adapts_a_model_and_takes_other_settings(name: str):
    more = {"target_rank": 2} if name.startswith("adalora") else {}
    method = rw.preset(name, rank=4, **more)
    assert method.rank == 4 and name.startswith(method.name)
    adaptation = rw.adapt(ENCODER.build(), method)
    frozen = {n.rpartition(".")[2] for n in adaptation.frozen()}
    assert frozen == (set() if method.name != "aflora" else frozen)
    plain = type(method)(rank=4, **more)
    defaults = {"aflora/adaptive-projections", "aflora/ffn", "aflora/gradient"}
    assert (method == plain) == (name in defaults)


def test_presets_mean_what_the_papers_mean():
    assert rw.preset("adalora/no-orthogonality") == rw.AdaLoRA(orthogonality=0)
    assert rw.preset("aflora/paper", scope="all") == rw.AFLoRA.paper(scope="all")
    trainable = rw.adapt(ENCODER.build(), rw.preset("aflora/trainable-projections", scope="all"))
    assert trainable.frozen() == [] and not trainable.method.decides_while_training
    frozen = rw.adapt(ENCODER.build(), rw.preset("aflora/frozen-projections", also_train=[]))
    vectors = {t for a in frozen.adapters.values() for t in ("A", "B") if a.trains(t)}
    assert not vectors


@pytest.mark.parametrize("name", rw.PRESETS)
def test_presets_have_their_names_in_a_file_and_on_the_command_line(name: str):
    """Written out, so that no run depends on what a preset will mean later."""
    needed = {"model": "m", "output": "o", "data": {"train": "t"}}
    expected = rw.preset(name, rank=4, **({"target_rank": 2} if name.startswith("adalora") else {}))
    settings = {"rank": 4} | ({"target_rank": 2} if name.startswith("adalora") else {})
    assert config_from_dict({**needed, "method": {"name": name, **settings}}).method == expected
    options = [f"--method.{key}={value}" for key, value in settings.items()]
    given = ["--model=m", "--output=o", "--data.train=t", f"--method={name}", *options]
    assert parse("train", given).config.method == expected


def test_presets_are_documented():
    pages = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "methods").glob("*.md"))
    undocumented = {n for n in rw.PRESETS if f"`{n}`" not in pages}
    assert not undocumented


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(rw.ConfigError, match="Did you mean 'adalora/magnitude'"):
        rw.preset("adalora/magnitudes")
