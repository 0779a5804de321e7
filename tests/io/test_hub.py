"""What goes to the hub: adapter, tokenizer and card; no base weights, no optimizer unless it was asked for."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from transformers import TrainingArguments

import rankwise as rw
import tiny
from rankwise.train.quiet import quiet_libraries
from rankwise.train.trainer import AdaptationTrainer

ADAPTER = {"rankwise.json", "adapter.safetensors"}
STATE = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "loss_sums.json"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
TOKEN = "hf_a_secret"


class Hub:
    """Takes uploads as the hub would see them: {path in the repository: content}, a commit a call."""

    def __init__(self) -> None:
        self.commits: list[dict[str, bytes]] = []

    def create_repo(self, api: Any, repo_id: str, **given: Any) -> Any:
        return SimpleNamespace(repo_id=f"someone/{repo_id}")

    def upload_folder(self, api: Any, *, repo_id: str, folder_path: str, **given: Any) -> Any:
        assert repo_id == "someone/tuned" and given["token"] == TOKEN
        place = Path(folder_path)
        files = [str(f.relative_to(place)) for f in place.rglob("*") if f.is_file()]
        kept = filter_repo_objects(files, ignore_patterns=given.get("ignore_patterns"))
        prefix = f"{given['path_in_repo']}/" if given.get("path_in_repo") else ""
        self.commits.append({prefix + name: (place / name).read_bytes() for name in kept})
        done: Future[str] = Future()
        done.set_result("commit")
        return done if given.get("run_as_future") else "commit"

    @property
    def files(self) -> set[str]:
        return {name for commit in self.commits for name in commit}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    quiet_libraries()
    made = Hub()
    for name in ("create_repo", "upload_folder"):
        method: Callable[..., Any] = getattr(made, name)
        monkeypatch.setattr(
            huggingface_hub.HfApi, name, lambda api, *given, _do=method, **named: _do(api, *given, **named)
        )
    return made


def trainer(folder: Path, **changes: Any) -> AdaptationTrainer:
    torch.manual_seed(0)
    tokenizer = tiny.word_tokenizer()
    words = torch.randint(3, 60, (16, 6)).tolist()
    method = rw.AdaLoRA(rank=3, target_rank=2, warmup=1, cooldown=2, every=1)
    adaptation = rw.adapt(tiny.llama(len(tokenizer)), method)
    return AdaptationTrainer(
        model=adaptation.model,
        args=TrainingArguments(
            output_dir=str(folder / "tuned"),
            max_steps=6,
            save_steps=2,
            per_device_train_batch_size=4,
            push_to_hub=True,
            hub_token=TOKEN,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            **changes,
        ),
        train_dataset=datasets.Dataset.from_dict({"input_ids": words, "labels": words}),
        processing_class=tokenizer,
        adaptation=adaptation,
    )


def check(hub: Hub, base: torch.nn.Module) -> None:
    """No file is as large as the base, none is a pickle but torch's own of the optimizer, and none holds the token."""
    weights = {p.detach().numpy().tobytes() for n, p in base.named_parameters() if ".base." in n or "embed" in n}
    assert len(weights) > 10
    for commit in hub.commits:
        for name, content in commit.items():
            assert not any(weight in content for weight in weights if len(weight) > 64), name
            assert TOKEN.encode() not in content, name
            assert Path(name).name != "training_args.bin"
            assert content[:2] != b"PK" or Path(name).name in STATE


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_while_training(hub: Hub, tmp_path: Path, strategy: str) -> None:
    run = trainer(tmp_path, hub_strategy=strategy, save_total_limit=1)
    run.train()
    run._finish_current_push()
    check(hub, run.model)
    adapter = ADAPTER | TOKENIZER | {"state.safetensors"}
    whole = adapter | STATE
    expected = {
        "end": set(),
        "every_save": adapter,
        "checkpoint": adapter | {f"last-checkpoint/{name}" for name in whole},
        "all_checkpoints": adapter | {f"checkpoint-{n}/{name}" for n in (2, 4, 6) for name in whole},
    }
    assert hub.files == expected[strategy]
    assert len(hub.commits) == {"end": 0, "every_save": 3}.get(strategy, 6)


def test_at_the_end(hub: Hub, tmp_path: Path) -> None:
    run = trainer(tmp_path, hub_strategy="end")
    run.train()
    run.push_to_hub()
    check(hub, run.model)
    assert hub.files - {"history.jsonl"} == ADAPTER | TOKENIZER | {"state.safetensors", "README.md"}
    place = tmp_path / "pulled"
    place.mkdir()
    for name, content in hub.commits[-1].items():
        (place / name).write_bytes(content)
    torch.manual_seed(0)
    again = rw.load(tiny.llama(len(run.processing_class)), place)
    assert again.ranks() == run.adaptation.ranks()


def test_a_saved_model_keeps_the_checkpoints_beside_it(hub: Hub, tmp_path: Path) -> None:
    run = trainer(tmp_path, hub_strategy="end")
    run.train()
    before = {p.relative_to(tmp_path) for p in tmp_path.rglob("*")}
    run.save_model()
    assert before < {p.relative_to(tmp_path) for p in tmp_path.rglob("*")}
    assert len(hub.commits) == 1  # a Trainer that pushes does so when it saves
    rw.load(tiny.llama(len(run.processing_class)), tmp_path / "tuned")
