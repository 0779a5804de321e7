"""What a user says about the data: where it is, what its columns are called, how much of it to take."""

from dataclasses import asdict, dataclass

from rankwise.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the rows come from, which columns to read, and how long a sequence may get."""

    train: str
    """A .jsonl, .json, .csv, .tsv or .parquet file, a folder with train.* (and validation.*), or a hub id."""

    validation: str | None = None
    """A file, or the name of a split of the hub data set. None: the folder's or the hub's own validation split,
    otherwise a held-out part of the training rows."""

    validation_fraction: float = 0.1
    """Share of the training rows to hold out when there is no validation split."""

    subset: str | None = None
    """Configuration of a hub data set, such as 'rte' of nyu-mll/glue."""

    text: str | None = None
    """Column with the text (the first text of a pair). None: detected."""

    text_pair: str | None = None
    """Column with the second text of a pair. None: detected, or no pair if `text` is named."""

    label: str | None = None
    """Column with the label: words or whole numbers for classes, fractions for regression. None: detected."""

    prompt: str | None = None
    """Column with the prompt, source or document to generate from. None: detected."""

    completion: str | None = None
    """Column with the completion, target or summary to generate. None: detected."""

    context: str | None = None
    """Column with the paragraph in which span-qa looks for the answer. None: detected."""

    question: str | None = None
    """Column with the question of span-qa. None: detected."""

    answers: str | None = None
    """Column with SQuAD's answers ({text: [...], answer_start: [...]}, empty lists: no answer). None: detected."""

    prompt_prefix: str = ""
    """Put before every prompt, such as 'summarize: ' for T5."""

    separator: str | None = None
    """Put between prompt and completion of a causal model, in place of blanks at the prompt's end. None: nothing where
    the columns are called prompt and completion (such files bring their own), a new line otherwise."""

    chat: bool = False
    """Give prompt and completion to a causal model as the turns of a user and an assistant in its chat template."""

    max_train_rows: int | None = None
    """Take at most this many training rows, drawn with `seed`. None: all."""

    max_validation_rows: int | None = None
    """Take at most this many validation rows, drawn with `seed`. None: all."""

    max_length: int = 256
    """Longest input in tokens (prompt and completion together for a causal model); longer ones are cut and counted."""

    max_target_length: int = 128
    """Longest target of seq2seq to learn from, in tokens; longer ones are cut and counted, and scored as they are."""

    document_stride: int = 128
    """Tokens that two windows of one long span-qa context share."""

    seed: int = 0
    """Seed of the held-out part and of the drawn rows."""

    def __post_init__(self) -> None:
        if not 0.0 < self.validation_fraction < 1.0:
            raise ConfigError(
                f"data.validation_fraction={self.validation_fraction} is not between 0 and 1, such as 0.1 for a tenth."
            )
        settings = asdict(self)
        for name, least in LEAST.items():
            value = settings[name]
            if value is not None and value < least:
                raise ConfigError(f"data.{name}={value} is not possible; it must be a number, {least} or more.")


LEAST = {
    "max_train_rows": 1,
    "max_validation_rows": 1,
    "max_length": 4,
    "max_target_length": 1,
    "document_stride": 0,
    "seed": 0,
}
