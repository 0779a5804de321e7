"""What the rows say of a run before a model is loaded: its task, its labels, how many there are."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from rankwise.heads import read_config, task_named
from rankwise.train.columns import find_columns
from rankwise.train.config import RunConfig
from rankwise.train.data import load_rows
from rankwise.train.labels import labels_of
from rankwise.train.prepare_spans import count_windows
from rankwise.train.prepared import Source
from rankwise.train.pretrained import read_tokenizer
from rankwise.train.tasks import check_lengths, guess_task


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A run without its weights."""

    model_config: PretrainedConfig
    """Of the model; its head has as many outputs as the data have labels."""
    task: str
    rows: int
    """To train on; of span-qa the windows, which are what a batch is made of."""


def outline(config: RunConfig) -> Outline:
    """Read the rows and the model's config. Raises ConfigError or DataError."""
    model_config = read_config(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    rows = load_rows(config.data)
    columns = find_columns(rows, config.data)
    task = config.task or guess_task(columns, rows["train"], model_config)[0]
    task_named(task, model_config)  # as in training, an unknown one and one that the model cannot do are refused
    check_lengths(config, task, model_config)
    if columns.label is not None:
        model_config.num_labels = 1 if task == "regression" else len(labels_of(rows["train"], columns.label))
    count = len(rows["train"])
    if task == "span-qa":
        count = count_windows(Source(rows=rows, columns=columns, tokenizer=read_tokenizer(config), config=config.data))
    return Outline(model_config=model_config, task=task, rows=count)
