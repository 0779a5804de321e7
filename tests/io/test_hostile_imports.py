"""Folders of PEFT's and checkpoints of loralib's, whoever made them: refused quickly, with the model as it was."""

import random
import shutil
from pathlib import Path
from typing import Any

import hostile_peft
import pytest
import torch
from hostile_folder import CANARY
from peft import AdaLoraConfig, LoraConfig, VeraConfig, get_peft_model
from test_hostile_folders import BYTES, SECONDS, snapshot, watched
from torch import nn

import rankwise as rw
import toy

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
CORPUS = hostile_peft.corpus()
CHECKPOINTS = dict(hostile_peft.checkpoints())
SAMPLE = set(random.Random(2).sample(sorted(CORPUS), 50))
CONFIGS: dict[str, Any] = {
    "lora": LoraConfig(r=3, lora_alpha=6, target_modules=["0", "2"], modules_to_save=["4"]),
    "adalora": AdaLoraConfig(init_r=4, target_r=2, total_step=20, target_modules=["0", "2"], modules_to_save=["4"]),
    "vera": VeraConfig(r=5, target_modules=["0", "2"], modules_to_save=["4"]),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("peft")
    for name, config in CONFIGS.items():
        model = get_peft_model(toy.mlp(), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter)
        model.save_pretrained(place / name)
    state = {
        f"{layer}.lora_{own}": torch.randn(shape)
        for layer, own, shape in (("0", "A", (3, 10)), ("0", "B", (16, 3)), ("2", "A", (3, 16)), ("2", "B", (12, 3)))
    }
    torch.save(state, place / "lora.pt")
    "warm".encode("cp437")  # what zipfile reads names with; a module is run when it is first wanted
    return place


@pytest.mark.parametrize("name", CONFIGS)
def test_the_good_folders_are_good(name: str, good: Path) -> None:
    assert set(rw.load(toy.mlp(), good / name).ranks()) == {"0", "2"}


def test_the_good_checkpoint_is_good(good: Path) -> None:
    assert rw.load(toy.mlp(), rw.Loralib(good / "lora.pt", alpha=3)).ranks() == {"0": 3, "2": 3}


def refused(model: nn.Module, source: Any, tmp_path: Path) -> None:
    before = snapshot(model)
    with watched() as cost, pytest.raises(rw.RankwiseError) as error:
        rw.load(model, source)
    assert cost["ran"] == [] and not (tmp_path / CANARY).exists()
    assert snapshot(model) == before
    assert cost["seconds"] < SECONDS and cost["bytes"] < BYTES, cost
    assert len(str(error.value)) < 2000 and "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    "how", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in sorted(CORPUS)]
)
def test_folders(how: str, good: Path, tmp_path: Path) -> None:
    name, spoil = CORPUS[how]
    folder = Path(shutil.copytree(good / name, tmp_path / "folder"))
    spoil(folder)
    refused(toy.mlp(), folder, tmp_path)


@pytest.mark.parametrize("how", sorted(CHECKPOINTS))
def test_checkpoints(how: str, good: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(good / "lora.pt", tmp_path / "lora.pt"))
    CHECKPOINTS[how](path)
    refused(toy.mlp(), rw.Loralib(path, alpha=3), tmp_path)


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bytes(seed: int, good: Path, tmp_path: Path) -> None:
    """Any byte may be another one: it is refused or loads, and nothing else happens."""
    chance = random.Random(seed)
    places = [(name, file) for name in CONFIGS for file in (hostile_peft.CONFIG, hostile_peft.WEIGHTS)]
    for name, file in [*places, ("lora.pt", "")]:
        target = tmp_path / f"{name}-{file}"
        source = shutil.copytree(good / name, target) if file else shutil.copy(good / name, target)
        path = Path(source) / file if file else Path(source)
        content = bytearray(path.read_bytes())
        for _ in range(chance.choice((1, 2, 8))):
            content[chance.randrange(min(len(content), 2500))] = chance.randrange(256)
        path.write_bytes(content)
        model = toy.mlp()
        before = snapshot(model)
        with watched() as cost:
            try:
                rw.load(model, Path(source) if file else rw.Loralib(path, alpha=3))
            except rw.RankwiseError:
                assert snapshot(model) == before
        assert cost["ran"] == [] and cost["seconds"] < SECONDS and cost["bytes"] < BYTES
