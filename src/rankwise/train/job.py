"""A run's parts, made and checked before anything is written: rows, task, tokenizer, model, adaptation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rankwise.adaptation import Adaptation
from rankwise.adapting import adapt, load
from rankwise.heads import task_named
from rankwise.planning.weightless import model_that_recomputes
from rankwise.train.columns import Columns, find_columns
from rankwise.train.config import RunConfig
from rankwise.train.data import load_rows
from rankwise.train.metrics import Metrics, metrics_for
from rankwise.train.prepare import prepare
from rankwise.train.prepared import Prepared
from rankwise.train.pretrained import from_pretrained, read_tokenizer, source_of
from rankwise.train.scorers import Scorer, check_references, scorer_for
from rankwise.train.tasks import check_lengths, guess_task


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a trainer is built from."""

    config: RunConfig
    task: str
    task_reason: str
    tokenizer: PreTrainedTokenizerBase
    prepared: Prepared
    metrics: Metrics
    scorer: Scorer
    adaptation: Adaptation

    @property
    def model(self) -> PreTrainedModel:
        return self.adaptation.model


def make_job(config: RunConfig, adapter: Path | None = None) -> Job:
    """Read the rows, load the model, adapt it; with `adapter`, load that saved adapter instead of a new one.

    Raises DataError, ConfigError or TargetError; nothing is written before this returns.
    """
    rows = load_rows(config.data)
    columns = find_columns(rows, config.data)
    source = source_of(config)
    model_config = from_pretrained(AutoConfig, config.model, source)
    task, reason = guess_task(columns, rows["train"], model_config)
    if config.task is not None:
        task, reason = config.task, "the config says so"
    head = task_named(task, model_config).model_class
    check_lengths(config, task, model_config)
    scorer = scorer_for(config.generation, task, columns)
    tokenizer = read_tokenizer(config)
    prepared = prepare(task, rows, columns, tokenizer, config.data)
    check_references(config.generation.score, rows["validation"], columns)
    set_seed(config.training.seed)  # heads, then adapters, are drawn from here on
    model = from_pretrained(head, config.model, source | _head_settings(task, prepared))
    if config.training.gradient_checkpointing:
        model_that_recomputes(model)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return Job(
        config=config,
        task=task,
        task_reason=reason,
        tokenizer=tokenizer,
        prepared=prepared,
        metrics=metrics_for(
            task,
            labels=prepared.labels,
            tokenizer=tokenizer,
            spans=prepared.spans,
            scorer=scorer,
            **(_whole_texts(rows["validation"], columns, scorer) if task == "seq2seq" else {}),
        ),
        scorer=scorer,
        adaptation=_adaptation(config, model, adapter),
    )


def _whole_texts(validation: datasets.Dataset, columns: Columns, scorer: Scorer) -> dict[str, Any]:
    """What generated text is scored by, as the file has it: what the model reads is cut."""
    roles = {"references": "completion"} | ({"prompts": "prompt"} if scorer.by_prompt else {})
    return {name: list(validation[columns.column(role)]) for name, role in roles.items()}


def _adaptation(config: RunConfig, model: PreTrainedModel, adapter: Path | None) -> Adaptation:
    if adapter is not None:
        return load(model, adapter, resume=False)
    adaptation = adapt(model, config.method)
    if config.init_from is not None:
        adaptation.start_from(config.init_from)
    return adaptation


def _head_settings(task: str, prepared: Prepared) -> dict[str, Any]:
    if task == "classification" and prepared.labels is not None:
        labels = prepared.labels
        return {"num_labels": len(labels), "id2label": labels.id2label, "label2id": labels.label2id}
    return {"num_labels": 1, "problem_type": "regression"} if task == "regression" else {}
