"""transformers' and trl's trainers: with the callback alone, and ours, whose checkpoints hold the adapter only."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.optim import Optimizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EvalPrediction,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig

import rankwise as rw
import tiny
from rankwise.adapter import Method
from rankwise.train.quiet import quiet_libraries
from rankwise.train.sft import AdaptationSFTTrainer
from rankwise.train.trainer import AdaptationSeq2SeqTrainer, AdaptationTrainer

STEPS, VOCABULARY = 12, 64
SHORT: dict[str, Any] = {"warmup": 2, "cooldown": 4, "every": 2}
ADALORA = rw.AdaLoRA(rank=3, target_rank=2, **SHORT)
AFLORA = rw.AFLoRA(rank=3, scope="all", **SHORT)


def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=2, **sizes))


def rows(count: int = 24) -> datasets.Dataset:
    """The label says whether the first token is a high one."""
    words = torch.randint(0, VOCABULARY, (count, 6), generator=torch.Generator().manual_seed(2))
    return datasets.Dataset.from_dict(
        {"input_ids": words.tolist(), "labels": (words[:, 0] >= VOCABULARY // 2).long().tolist()}
    )


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 4,
        "logging_steps": 3,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    return given | changes


def stock(adaptation: rw.Adaptation, folder: Path, **changes: Any) -> Trainer:
    arguments = TrainingArguments(**settings(folder, **changes))
    callback = rw.AdaptationCallback(adaptation)
    return Trainer(model=adaptation.model, args=arguments, train_dataset=rows(), callbacks=[callback])


def ours(adaptation: rw.Adaptation, folder: Path, **changes: Any) -> AdaptationTrainer:
    own = {
        name: changes.pop(name) for name in ("head_learning_rate", "compute_metrics", "callbacks") if name in changes
    }
    return AdaptationTrainer(
        model=adaptation.model,
        args=TrainingArguments(**settings(folder, **changes)),
        train_dataset=rows(),
        eval_dataset=rows(8),
        adaptation=adaptation,
        history=folder / "history.jsonl",
        **own,
    )


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in tiny.lines(folder / "history.jsonl") if line["event"] == kind]


def hooks(optimizer: Any) -> int:
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


# transformers' Trainer with the callback


def test_a_stock_trainer_allocates(tmp_path: Path) -> None:
    adaptation = rw.adapt(classifier(), ADALORA)
    trainer = stock(adaptation, tmp_path)
    trainer.train()
    allocated = events(tmp_path, "allocated")
    assert [e["step"] for e in allocated] == [4, 6, 8]
    assert sum(adaptation.ranks().values()) == allocated[-1]["live"] == 2 * len(adaptation.adapters)
    assert events(tmp_path, "started")[0]["total_steps"] == STEPS
    assert hooks(trainer.optimizer) == 0 and adaptation.attachment is None


def test_a_stock_trainer_freezes(tmp_path: Path) -> None:
    adaptation = rw.adapt(classifier(), AFLORA)
    trainer = stock(adaptation, tmp_path)
    trainer.train()
    assert {name for e in events(tmp_path, "froze") for name in e["frozen"]} == set(adaptation.frozen())
    assert len(adaptation.frozen()) == 2 * len(adaptation.adapters)
    assert hooks(trainer.optimizer) == 0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_number_of_steps_comes_from_epochs(accumulation: int, tmp_path: Path) -> None:
    """A schedule in epochs: 24 rows are 3 batches of 8, which are 3 steps, or 2 when 2 batches make a step."""
    per_epoch = {1: 3, 2: 2}[accumulation]
    method = rw.AdaLoRA(rank=3, target_rank=2, warmup="1 epoch", cooldown=rw.epochs(1), every=1)
    adaptation = rw.adapt(classifier(), method)
    changes = {"max_steps": -1, "num_train_epochs": 4, "gradient_accumulation_steps": accumulation}
    stock(adaptation, tmp_path, **changes).train()
    allocated = events(tmp_path, "allocated")
    assert events(tmp_path, "started")[0]["total_steps"] == 4 * per_epoch
    assert [e["step"] for e in allocated] == list(range(per_epoch + 1, 3 * per_epoch + 1))


def test_a_stock_checkpoint_has_the_adapter_beside_the_model(tmp_path: Path) -> None:
    adaptation = rw.adapt(classifier(), ADALORA)
    stock(adaptation, tmp_path).train()
    for step in (4, 8, 12):
        folder = tmp_path / f"checkpoint-{step}"
        assert (folder / "model.safetensors").is_file()
        assert {"rankwise.json", "adapter.safetensors", "state.safetensors"} == {
            entry.name for entry in (folder / "adapter").iterdir()
        }
    again = rw.load(classifier(), tmp_path / "checkpoint-12" / "adapter")
    assert again.ranks() == adaptation.ranks()
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, adaptation.model.get_parameter(name)), name


def test_a_stock_trainer_without_the_callback_is_stopped(tmp_path: Path) -> None:
    adaptation = rw.adapt(classifier(), ADALORA)
    trainer = Trainer(model=adaptation.model, args=TrainingArguments(**settings(tmp_path)), train_dataset=rows())
    with pytest.raises(rw.StateError, match=r"not attached.*AdaptationCallback"):
        trainer.train()


def test_a_schedule_without_room_stops_a_stock_trainer_before_its_first_step(tmp_path: Path) -> None:
    adaptation = rw.adapt(classifier(), rw.AdaLoRA(rank=3, target_rank=2, warmup=8, cooldown=8))
    trainer = stock(adaptation, tmp_path)
    with pytest.raises(rw.ScheduleError, match="leave no step of total_steps=12"):
        trainer.train()
    assert trainer.state.global_step == 0 and not (tmp_path / "history.jsonl").exists()


@pytest.mark.parametrize(("logs", "step"), [("steps", 4), ("no", 8)])
def test_a_stock_trainer_resumes_from_the_folder_it_was_told(logs: str, step: int, tmp_path: Path) -> None:
    """Both runs have checkpoints of the same steps, before and after the first allocation. The second continues the
    first one's, or does not begin."""
    first, second = tmp_path / "first", tmp_path / "second"
    through = rw.adapt(classifier(), ADALORA)
    stock(through, first, logging_strategy=logs).train()
    stock(rw.adapt(classifier(), ADALORA), second, logging_strategy=logs, learning_rate=1e-3).train()
    from_first = {"resume_from_checkpoint": str(first / f"checkpoint-{step}")}
    with pytest.raises(rw.FolderError, match=r"other weights than .*second.*another run's.*resume_from_checkpoint"):
        stock(rw.adapt(classifier(), ADALORA), second, logging_strategy=logs).train(**from_first)
    resumed = rw.adapt(classifier(), ADALORA)
    stock(resumed, second, logging_strategy=logs, **from_first).train(**from_first)
    assert resumed.ranks() == through.ranks()
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, through.model.get_parameter(name)), name
    with pytest.raises(rw.FolderError, match=r"third.* is not there.*resume_from_checkpoint"):
        stock(rw.adapt(classifier(), ADALORA), tmp_path / "third").train(**from_first)


def test_a_stock_trainer_takes_a_stream(tmp_path: Path) -> None:
    """It has no length: a schedule in steps runs, one in epochs is refused."""
    for method, steps in ((ADALORA, [4, 6, 8]), (replace(ADALORA, warmup="1 epoch"), [])):
        adaptation = rw.adapt(classifier(), method)
        callback = rw.AdaptationCallback(adaptation)
        arguments = TrainingArguments(**settings(tmp_path))
        stream = rows().to_iterable_dataset()
        trainer = Trainer(model=adaptation.model, args=arguments, train_dataset=stream, callbacks=[callback])
        if steps:
            trainer.train()
            assert [e["step"] for e in events(tmp_path, "allocated")] == steps
        else:
            with pytest.raises(rw.ScheduleError, match="epoch"):
                trainer.train()


# our trainers


def tensor_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as content:
            names |= set(content.keys())
    return names


def check_checkpoint(folder: Path, adaptation: rw.Adaptation, *, heads: set[str], tokenizer: bool) -> None:
    """Its files, the names of its tensors, and its size: nothing of the base model is there."""
    names = {entry.name for entry in folder.iterdir()}
    state = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "loss_sums.json"}
    words = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} if tokenizer else set()
    assert names == {"rankwise.json", "adapter.safetensors", "state.safetensors"} | state | words
    with safe_open(folder / "adapter.safetensors", "pt") as content:
        held = set(content.keys())
    assert held == {f"{n}::{t}" for n, a in adaptation.adapters.items() for t in a.tensors()} | heads
    assert not any(".base." in name for name in tensor_names(folder))
    assert sum(file.stat().st_size for file in folder.iterdir() if file.name not in words) < 250_000


@pytest.mark.parametrize("method", [ADALORA, AFLORA], ids=lambda m: m.name)
def test_checkpoints_hold_the_adapter_only(method: Method, tmp_path: Path) -> None:
    adaptation = rw.adapt(classifier(), method)
    trainer = ours(adaptation, tmp_path)
    trainer.train()
    assert sorted(f.name for f in tmp_path.glob("checkpoint*")) == ["checkpoint-12", "checkpoint-4", "checkpoint-8"]
    for folder in tmp_path.glob("checkpoint-*"):
        check_checkpoint(folder, adaptation, heads={"classifier.weight", "classifier.bias"}, tokenizer=False)
    assert hooks(trainer.optimizer) == 0


def test_sft_checkpoints_hold_the_adapter_only(tmp_path: Path) -> None:
    quiet_libraries()
    torch.manual_seed(0)
    tokenizer = tiny.word_tokenizer()
    adaptation = rw.adapt(tiny.llama(len(tokenizer)), ADALORA)
    trainer = AdaptationSFTTrainer(
        model=adaptation.model,
        args=SFTConfig(
            **settings(tmp_path, per_device_train_batch_size=4), max_length=32, gradient_checkpointing=False
        ),
        train_dataset=datasets.Dataset.from_list(tiny.pair_rows(12)),
        processing_class=tokenizer,
        adaptation=adaptation,
        history=tmp_path / "history.jsonl",
    )
    trainer.train()
    check_checkpoint(tmp_path / "checkpoint-12", adaptation, heads=set(), tokenizer=True)
    assert events(tmp_path, "allocated")[-1]["live"] == 2 * len(adaptation.adapters)
    assert hooks(trainer.optimizer) == 0


def test_seq2seq_checkpoints_hold_the_adapter_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    adaptation = rw.adapt(tiny.t5(VOCABULARY), AFLORA)
    pairs = rows().map(lambda row: {"labels": [row["labels"] + 5, 2]})
    trainer = AdaptationSeq2SeqTrainer(
        model=adaptation.model,
        args=Seq2SeqTrainingArguments(**settings(tmp_path)),
        train_dataset=pairs,
        adaptation=adaptation,
        history=tmp_path / "history.jsonl",
    )
    trainer.train()
    check_checkpoint(tmp_path / "checkpoint-12", adaptation, heads=set(), tokenizer=False)
    assert len(adaptation.frozen()) == 2 * len(adaptation.adapters)


def test_the_time_of_a_resumed_run_is_that_of_all_its_parts(tmp_path: Path) -> None:
    """An hour up to step 4. A checkpoint of 0.1.0 does not know its time."""
    hour = 3600.0
    ours(rw.adapt(classifier(), ADALORA), tmp_path).train()
    file = tmp_path / "checkpoint-4" / "loss_sums.json"
    sums = tiny.strict_json(file)
    assert 0 < sums.pop("seconds") < tiny.strict_json(tmp_path / "checkpoint-12" / "loss_sums.json")["seconds"]
    for known in ({"seconds": hour}, {}):
        file.write_text(json.dumps(sums | known))
        trainer = ours(rw.adapt(classifier(), ADALORA), tmp_path)
        trainer.train(resume_from_checkpoint=str(file.parent))
        saved = tiny.strict_json(tmp_path / "checkpoint-12" / "loss_sums.json")["seconds"]
        assert trainer.seconds > saved > (hour if known else 0)


def test_old_checkpoints_are_removed(tmp_path: Path) -> None:
    adaptation = rw.adapt(classifier(), rw.LoRA(rank=2))
    ours(adaptation, tmp_path, save_steps=2, save_total_limit=2).train()
    assert {f.name for f in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-12", "history.jsonl"}


def scripted(values: list[float]) -> Callable[[EvalPrediction], dict[str, float]]:
    """One value for each evaluation, in turn."""
    left = iter(values)
    return lambda _: {"score": next(left)}


BEST = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}


def best_of(method: Method, values: list[float], folder: Path, **changes: Any) -> AdaptationTrainer:
    trainer = ours(
        rw.adapt(classifier(), method),
        folder,
        compute_metrics=scripted(values),
        metric_for_best_model="score",
        greater_is_better=True,
        **BEST,
        **changes,
    )
    trainer.train()
    return trainer


def assert_weights_of(checkpoint: Path, adaptation: rw.Adaptation) -> None:
    saved = load_file(checkpoint / "adapter.safetensors")
    for name, adapter in adaptation.adapters.items():
        for tensor, value in adapter.tensors().items():
            assert torch.equal(saved[f"{name}::{tensor}"], value), f"{name}::{tensor}"
    for name, parameter in adaptation.trained.items():
        assert torch.equal(saved[name], parameter), name


def test_the_best_is_of_the_final_phase(tmp_path: Path) -> None:
    """The budget has fallen after step 8, so only the checkpoints 10 and 12 have it: the best scores come too early."""
    trainer = best_of(ADALORA, [0.9, 0.8, 0.7, 0.6, 0.3, 0.2], tmp_path)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-10")
    assert_weights_of(tmp_path / "checkpoint-10", trainer.adaptation)
    assert sum(trainer.adaptation.ranks().values()) == 2 * len(trainer.adaptation.adapters)


def test_what_had_frozen_at_the_best_is_frozen_at_the_end(tmp_path: Path) -> None:
    method = rw.AFLoRA(rank=2, scope="all", warmup=2, cooldown=4, every=2)
    trainer = best_of(method, [0.9, 0.8, 0.7, 0.6, 0.3, 0.2], tmp_path)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-10")
    adaptation = trainer.adaptation
    assert adaptation.frozen() and adaptation.count() < adaptation._initial
    adaptation.save(tmp_path / "final")
    assert rw.load(classifier(), tmp_path / "final").frozen() == adaptation.frozen()


def test_the_best_is_kept_when_old_ones_go(tmp_path: Path) -> None:
    trainer = best_of(rw.LoRA(rank=2), [0.1, 0.9, 0.3, 0.4, 0.5, 0.6], tmp_path, save_total_limit=2)
    assert {f.name for f in tmp_path.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-10", "checkpoint-12"}
    assert_weights_of(tmp_path / "checkpoint-4", trainer.adaptation)


def test_without_a_checkpoint_of_the_final_phase_the_last_weights_stay(tmp_path: Path) -> None:
    method = rw.AdaLoRA(rank=3, target_rank=2, warmup=2, cooldown=1, every=2)
    trainer = best_of(method, [0.9, 0.1, 0.2, 0.3, 0.4, 0.5], tmp_path)
    chosen = trainer.state.best_model_checkpoint
    assert chosen in (None, str(tmp_path / "checkpoint-12"))
    assert_weights_of(tmp_path / "checkpoint-12", trainer.adaptation)


# the optimizer


@pytest.mark.parametrize("method", [rw.LoRA(rank=2), ADALORA, AFLORA], ids=lambda m: m.name)
def test_the_optimizer_holds_exactly_what_trains(method: Method, tmp_path: Path) -> None:
    adaptation = rw.adapt(classifier(), method)
    optimizer = ours(adaptation, tmp_path, head_learning_rate=0.5, weight_decay=0.1).create_optimizer()
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in held}) == len(held)
    assert {id(p) for p in held} == {id(p) for p in adaptation.parameters()}
    assert {id(p) for p in held} == {id(p) for p in adaptation.model.parameters() if p.requires_grad}
    groups = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    weight, bias = adaptation.trained["classifier.weight"], adaptation.trained["classifier.bias"]
    assert groups.pop(id(weight)) == (0.5, 0.1)
    assert groups.pop(id(bias)) == (0.5, 0.0)
    assert set(groups.values()) == {(1e-2, 0.1)}


@pytest.mark.parametrize("method", [rw.LinAdapter(size=2), rw.BitFit(), rw.FullFineTuning()], ids=lambda m: m.name)
def test_vectors_that_a_baseline_trains_do_not_decay_and_heads_have_their_rate(method: Method, tmp_path: Path) -> None:
    adaptation = rw.adapt(classifier(), method)
    optimizer = ours(adaptation, tmp_path, head_learning_rate=0.5, weight_decay=0.1).create_optimizer()
    groups = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert groups.keys() == {id(p) for p in adaptation.parameters()}
    heads = {id(adaptation.trained[f"classifier.{name}"]) for name in ("weight", "bias")}
    for parameter in adaptation.parameters():
        rate = 0.5 if id(parameter) in heads else 1e-2
        assert groups[id(parameter)] == (rate, 0.1 if parameter.ndim > 1 else 0.0)


def test_heads_take_the_common_rate_unless_told(tmp_path: Path) -> None:
    adaptation = rw.adapt(classifier(), rw.LoRA(rank=2))
    optimizer = ours(adaptation, tmp_path).create_optimizer()
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2}


def test_only_what_is_declared_moves(tmp_path: Path) -> None:
    adaptation = rw.adapt(classifier(), AFLORA)
    declared = {id(p) for p in adaptation.parameters()}
    before = {name: p.clone() for name, p in adaptation.model.named_parameters()}
    ours(adaptation, tmp_path, weight_decay=0.1).train()
    for name, parameter in adaptation.model.named_parameters():
        assert torch.equal(before[name], parameter) == (id(parameter) not in declared), name


# errors in the middle


class Fails(TrainerCallback):
    """A power cut, as it were, after the fifth step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 5:
            raise RuntimeError("the lights went out")


def test_an_error_leaves_no_hooks_behind(tmp_path: Path) -> None:
    adaptation = rw.adapt(classifier(), ADALORA)
    trainer = ours(adaptation, tmp_path, callbacks=[Fails()])
    with pytest.raises(RuntimeError, match="lights went out"):
        trainer.train()
    assert hooks(trainer.optimizer) == 0 and adaptation.attachment is None
    assert [line["step"] for line in events(tmp_path, "allocated")] == [4]
    adaptation.undo()
    assert all(type(m) is not type(adaptation) for m in adaptation.model.modules())
    check_trains(adaptation.model)


def check_trains(model: nn.Module) -> None:
    """Any optimizer may step the model: nobody guards it any more."""
    parameter = next(model.parameters())
    parameter.grad = torch.zeros_like(parameter)
    optimizer: Optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.step()


def test_training_can_begin_again_after_an_error(tmp_path: Path) -> None:
    """With the same trainer from its last checkpoint; a stock trainer's callback lets go of the dead run by itself."""
    adaptation = rw.adapt(classifier(), ADALORA)
    fails = Fails()
    trainer = ours(adaptation, tmp_path, callbacks=[fails])
    with pytest.raises(RuntimeError, match="lights went out"):
        trainer.train()
    trainer.remove_callback(fails)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [line["step"] for line in events(tmp_path, "allocated")] == [4, 6, 8]
    assert trainer.state.global_step == STEPS
    assert json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())["global_step"] == STEPS
