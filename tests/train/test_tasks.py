"""Guessing the task, and refusing models that cannot do it."""

from dataclasses import replace
from typing import Any

import datasets
import pytest
from transformers import BartConfig, BertConfig, GPT2Config, LlamaConfig, RobertaConfig, T5Config, ViTConfig

import rankwise as rw
from rankwise.errors import ConfigError
from rankwise.heads import TASKS, task_named, usual_task
from rankwise.train.columns import Columns
from rankwise.train.config import GenerationConfig, RunConfig
from rankwise.train.data_config import DataConfig
from rankwise.train.prepare import PREPARERS
from rankwise.train.tasks import check_length, check_lengths, guess_task

LABELLED = Columns(text="text", label="label")
PAIR = Columns(prompt="document", completion="summary")
QA = Columns(context="context", question="question", answers="answers")
CASES: list[tuple[Columns, Any, Any, str, str]] = [
    (LABELLED, "good", BertConfig(), "classification", "column 'label' holds words"),
    (LABELLED, 1, BertConfig(), "classification", "column 'label' holds whole numbers"),
    (LABELLED, 1, BartConfig(), "classification", "column 'label' holds whole numbers"),
    (LABELLED, 1.5, BertConfig(), "regression", "column 'label' holds fractions"),
    (QA, None, BertConfig(), "span-qa", "'answers'"),
    (PAIR, None, BartConfig(), "seq2seq", "'document' and 'summary', and bart is an encoder-decoder"),
    (PAIR, None, LlamaConfig(), "causal-lm", "'document' and 'summary'"),
    (Columns(messages="messages"), None, LlamaConfig(), "causal-lm", "'messages'"),
    (Columns(text="text"), None, LlamaConfig(), "causal-lm", "'text', and no label"),
]


@pytest.mark.parametrize(("columns", "label", "model", "task", "reason"), CASES)
def test_guess(columns: Columns, label: Any, model: Any, task: str, reason: str) -> None:
    rows = datasets.Dataset.from_dict({"text": ["x"], "label": [label]})
    guessed, why = guess_task(columns, rows, model)
    assert guessed == task and reason in why


USUAL: list[tuple[Any, str | None]] = [
    (BertConfig(), "classification"),
    (BertConfig(architectures=["BertForQuestionAnswering"]), "span-qa"),
    (LlamaConfig(architectures=["LlamaForCausalLM"]), "causal-lm"),
    (GPT2Config(architectures=["GPT2LMHeadModel"]), "causal-lm"),
    (T5Config(architectures=["T5ForConditionalGeneration"]), "seq2seq"),
    (ViTConfig(), None),
]


@pytest.mark.parametrize(("model", "task"), USUAL, ids=[str(task) for _, task in USUAL])
def test_a_checkpoint_has_a_usual_task(model: Any, task: str | None) -> None:
    assert usual_task(model) == task


def test_declared_classes_are_a_classification() -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"label": [0]}, features=features)
    assert guess_task(LABELLED, rows, BertConfig())[0] == "classification"


def test_every_task_can_be_prepared() -> None:
    assert TASKS.keys() == PREPARERS.keys()


def test_a_model_without_the_head_is_refused() -> None:
    assert task_named("seq2seq", T5Config()).model_class.__name__ == "AutoModelForSeq2SeqLM"
    with pytest.raises(ConfigError, match=r"a gpt2 model has no head for task 'seq2seq'; it has one for .*causal-lm"):
        task_named("seq2seq", GPT2Config())
    with pytest.raises(ConfigError, match="Did you mean 'regression'"):
        task_named("regresion", GPT2Config())


@pytest.mark.parametrize(
    ("model", "positions"),
    [(BertConfig(), 512), (GPT2Config(), 1024), (RobertaConfig(max_position_embeddings=514), 512)],
)
def test_length_is_held_against_the_positions(model: Any, positions: int) -> None:
    check_length(positions, model)
    with pytest.raises(ConfigError, match=f"max_length={positions + 1} exceeds the {positions} positions"):
        check_length(positions + 1, model)


@pytest.mark.parametrize("setting", ["data.max_target_length", "generation.max_new_tokens"])
def test_an_encoder_decoder_writes_no_more_than_it_has_positions(setting: str) -> None:
    section, _, name = setting.partition(".")
    made = {"data": DataConfig(train="x.jsonl"), "generation": GenerationConfig()}
    made[section] = replace(made[section], **{name: 1025})
    config = RunConfig(model="x", method=rw.LoRA(), output="run", **made)
    check_lengths(config, "seq2seq", T5Config())
    check_lengths(config, "causal-lm", GPT2Config())
    with pytest.raises(ConfigError, match=f"{name}=1025 exceeds the 1024 positions of this bart. Set {setting} to"):
        check_lengths(config, "seq2seq", BartConfig())


def test_t5_has_no_positions_to_run_out_of() -> None:
    check_length(10_000, T5Config())
