"""Chat templates: TRL trains on the rows that are counted, and a prompt is answered as it was trained on."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

import rankwise as rw
import tiny
from rankwise.train.build import build_trainer
from rankwise.train.config import RunConfig, TrainingConfig
from rankwise.train.data_config import DataConfig
from rankwise.train.evaluation import generate
from rankwise.train.job import Job, make_job

BEGIN, PAD = 1, 0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny Llama whose tokenizer and whose template both begin a text with <bos>."""
    folder = tiny.save_model("llama", tmp_path / "model")
    tokenizer = tiny.word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BEGIN)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)
    tokenizer.save_pretrained(folder)
    return folder


def made(folder: Path, rows: tiny.Rows, *, chat: bool, max_length: int) -> Job:
    path = tiny.write_rows(folder / "rows.jsonl", rows)
    config = RunConfig(
        model=str(folder / "model"),
        method=rw.LoRA(rank=2),
        data=DataConfig(train=path, validation=path, max_length=max_length, chat=chat),
        output=str(folder / "run"),
        training=TrainingConfig(batch_size=2),
    )
    return make_job(config)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("chat", [True, False])
def test_trl_trains_on_what_is_counted(tmp_path: Path, chat: bool) -> None:
    rows = [{"prompt": "the crab pots " * (4 * i), "completion": "Nobody counts them"} for i in range(1, 7)]
    job = made(tmp_path, rows, chat=chat, max_length=40)
    trainer: Any = build_trainer(job, tmp_path / "run", None)
    assert len(trainer.train_dataset) == len(trainer.eval_dataset) == len(job.prepared.train)
    assert len(job.prepared.train) == 6 - job.prepared.left_out["train"]
    assert (job.prepared.left_out["train"] > 0) is chat and job.prepared.truncated["train"] > 0


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("chat", [True, False])
def test_a_prompt_begins_once(tmp_path: Path, chat: bool) -> None:
    """With the tokens that training puts before a completion, the prompts of a batch padded on the left."""
    rows = [{"prompt": "Who " * i, "completion": "Nobody"} for i in (2, 9)]
    job = made(tmp_path, rows, chat=chat, max_length=48)
    trainer: Any = build_trainer(job, tmp_path / "run", None)
    read: list[list[list[int]]] = []
    job.model.register_forward_pre_hook(
        lambda _, given, named: read.append(named["input_ids"].tolist()), with_kwargs=True
    )
    generate(job, trainer, list(job.prepared.validation["prompt"]))
    asked = [[token for token in row if token != PAD] for row in read[0]]
    assert [row.count(BEGIN) for row in asked] == [1, 1]
    for prompt, trained in zip(asked, trainer.train_dataset["input_ids"], strict=True):
        assert trained[: len(prompt)] == prompt
