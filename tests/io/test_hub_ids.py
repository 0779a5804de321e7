"""Adapters by hub id, through the real client, against a hub on this machine."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import running

import rankwise as rw
import tiny
from contract.models import ENCODER
from contract.runs import trained

TESTS = Path(__file__).parents[1]

BEGIN = """
import torch
import rankwise as rw
from contract.models import ENCODER

def refused(call, error, *words):
    try:
        call()
    except error as raised:
        assert all(word in str(raised) for word in words), raised
    else:
        raise AssertionError(words)

"""


def run(script: str, address: str, folder: Path, **environment: str) -> str:
    """In a process of its own: the client reads where the hub is, and whether to ask it, when it is imported."""
    given = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    path = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + textwrap.dedent(script)],
        cwd=folder,
        env=os.environ | given | {"PYTHONPATH": path, "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=tiny.HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, rw.Adaptation]:
    """Two versions of an adapter, in folders of those names."""
    made = {}
    for seed, name in enumerate(("old", "new")):
        torch.manual_seed(seed)
        made[name] = trained(ENCODER, rw.LoRA(rank=2 + seed))
        made[name].save(tmp_path / name)
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.usefixtures("adapters")
def test_loading_by_id(tmp_path: Path):
    with running() as hub:
        other = {"model.safetensors": b"large", "README.md": b"card"}
        hub.repositories["some-one/news_1.0"] = {
            "main": content(tmp_path / "new") | other,
            "v1": content(tmp_path / "old"),
            "empty": other,
        }
        run(
            """
            model = ENCODER.build()
            assert set(rw.load(model, "some-one/news_1.0").ranks().values()) == {3}
            assert set(rw.load(ENCODER.build(), "some-one/news_1.0", revision="v1").ranks().values()) == {2}
            bank = rw.Bank(ENCODER.build())
            bank.add("news", "some-one/news_1.0")
            bank.replace("news", "some-one/news_1.0", revision="v1")
            assert "26 ranks" in str(bank)
            load = lambda *a, **k: rw.load(ENCODER.build(), *a, **k)
            refused(lambda: load("some-one/other"), rw.FolderError, "no folder 'some-one/other'", "hub does not")
            refused(lambda: load("some-one/news_1.0", revision="v9"), rw.FolderError, "v9")
            refused(lambda: load("some-one/news_1.0", revision="empty"), rw.FolderError)
            import pathlib, shutil
            shutil.copytree("old", "some-one/news_1.0")  # now a path, which wins
            assert set(load("some-one/news_1.0").ranks().values()) == {2}
            refused(lambda: load("some-one/news_1.0", revision="v1"), rw.ConfigError, "revision='v1'")
            refused(lambda: load(pathlib.Path("some-one/other")), rw.FolderError, "no rankwise adapter")
            """,
            hub.address,
            tmp_path,
        )
        assert not any("model.safetensors" in path for path in hub.asked)
        (tmp_path / "elsewhere").mkdir()
        run(
            """
            rw.load(ENCODER.build(), "some-one/news_1.0")  # from the cache
            words = ("no folder 'some-one/other'", "not in the cache", "HF_HUB_OFFLINE")
            refused(lambda: rw.load(ENCODER.build(), "some-one/other"), rw.FolderError, *words)
            """,
            hub.address,
            tmp_path / "elsewhere",
            HF_HUB_OFFLINE="1",
            HF_HOME=str(tmp_path / "home"),
        )


@pytest.mark.slow
@pytest.mark.usefixtures("adapters")
def test_without_a_connection_the_error_says_so(tmp_path: Path):
    run(
        """
        refused(lambda: rw.load(ENCODER.build(), "some-one/news"), rw.FolderError, "out of reach", "the connection")
        refused(lambda: rw.load(ENCODER.build(), "old").push_to_hub("some-one/news"), rw.FolderError, "not uploaded")
        refused(lambda: rw.load(ENCODER.build(), "old").push_to_hub("news"), rw.ConfigError, "user/name")
        """,
        "http://127.0.0.1:9",
        tmp_path,
    )


@pytest.mark.slow
def test_pushing(adapters: dict[str, rw.Adaptation], tmp_path: Path):
    """What is pushed is what `save` writes and a card, without the path that the base had here."""
    with running() as hub:
        told = run(
            f"""
            adaptation = rw.load(ENCODER.build(), "new")
            adaptation.model.config._name_or_path = {str(tmp_path)!r}
            print(adaptation.push_to_hub("some-one/news", token="hf_a_secret", private=True))
            adaptation.model.config._name_or_path = "google/base"
            adaptation.push_to_hub("some-one/news", token="hf_a_secret", revision="v2", commit_message="Second")
            again = rw.load(ENCODER.build(), "some-one/news", revision="v2")
            assert again.ranks() == adaptation.ranks()
            """,
            hub.address,
            tmp_path,
        )
        assert told.startswith(f"{hub.address}/some-one/news/commit/")
        files, second = (hub.repositories["some-one/news"][r] for r in ("main", "v2"))
    assert set(files) == {"rankwise.json", "adapter.safetensors", "README.md"}
    assert files["adapter.safetensors"] == (tmp_path / "new" / "adapter.safetensors").read_bytes()
    assert json.loads(files["rankwise.json"])["base_model"]["name"] is None
    assert not any(str(tmp_path).encode() in c or b"hf_a_secret" in c for c in files.values())
    front = yaml.safe_load(second["README.md"].split(b"---")[1])
    assert front == {"base_model": "google/base", "library_name": "rankwise", "tags": ["lora", "rankwise"]}
    assert "base_model" not in yaml.safe_load(files["README.md"].split(b"---")[1])
