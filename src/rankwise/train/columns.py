"""Which column plays which role: named in the config, or recognised by the names that known data sets use."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import datasets
import pyarrow as pa

from rankwise.errors import DataError, nearest
from rankwise.train.data_config import DataConfig


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Name of the column that plays each role, None where the data has no such role."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    context: str | None = None
    question: str | None = None
    answers: str | None = None

    def used(self) -> dict[str, str]:
        """{role: column} of the roles that are played."""
        return {role: column for role, column in asdict(self).items() if column is not None}

    def column(self, role: str) -> str:
        """The column of a role that the task needs. Raises DataError when the data has none."""
        if role not in self.used():
            raise DataError(
                f"this task needs a column for {role!r}; found were {self.used()}. "
                f"Name it with `{role}:`, or choose another task."
            )
        return self.used()[role]


# The first shape whose columns are all present is taken: what needs more columns stands first.
SHAPES: tuple[Mapping[str, str], ...] = (
    {"context": "context", "question": "question", "answers": "answers"},
    {"messages": "messages"},
    {"prompt": "prompt", "completion": "completion"},
    {"text": "sentence1", "text_pair": "sentence2", "label": "label"},
    {"text": "question", "text_pair": "sentence", "label": "label"},
    {"text": "premise", "text_pair": "hypothesis", "label": "label"},
    {"text": "question1", "text_pair": "question2", "label": "label"},
    {"text": "sentence", "label": "label"},
    {"text": "text", "label": "label"},
    {"prompt": "document", "completion": "summary"},
    {"prompt": "dialogue", "completion": "summary"},
    {"prompt": "article", "completion": "highlights"},
    {"prompt": "source", "completion": "target"},
    {"prompt": "question", "completion": "answer"},
    {"text": "text"},
)
NAMEABLE = ("text", "text_pair", "label", "prompt", "completion", "context", "question", "answers")
STRINGS = ("text", "text_pair", "context", "question")


def known_names(config: DataConfig) -> set[str]:
    """Every column name that could be read, named or recognised."""
    return {name for shape in SHAPES for name in shape.values()} | set(named(config).values())


def named(config: DataConfig) -> dict[str, str]:
    """{role: column} of the columns that the user named."""
    settings = asdict(config)
    return {role: settings[role] for role in NAMEABLE if settings[role] is not None}


def detect_columns(names: Sequence[str], config: DataConfig, where: str = "the data") -> Columns:
    """The role of each column. `where` names the file in the errors, which list the columns that are there."""
    chosen = named(config)
    for role, column in chosen.items():
        if column not in names:
            raise DataError(
                f"{where} has no column {column!r} (`{role}:`); its columns are {list(names)}.{nearest(column, names)}"
            )
    for shape in SHAPES:
        roles = {**shape, **chosen}
        if chosen.keys() <= shape.keys() and not pair_was_declined(shape, chosen) and set(roles.values()) <= set(names):
            return Columns(**roles)
    raise DataError(unrecognised(names, chosen, where))


def pair_was_declined(shape: Mapping[str, str], chosen: Mapping[str, str]) -> bool:
    """Whoever names one text and no pair wants one text, also where the file has a well-known second one."""
    return "text_pair" in shape and "text" in chosen and "text_pair" not in chosen


def unrecognised(names: Sequence[str], chosen: Mapping[str, str], where: str) -> str:
    known = "; ".join("+".join(shape.values()) for shape in SHAPES)
    told = f" with {dict(chosen)}" if chosen else ""
    return (
        f"{where}: the columns {list(names)}{told} fit no task. Recognised are: {known}. Name others in the config: "
        "`text:` (and `text_pair:`) with `label:`; `prompt:` with `completion:`; `context:`, `question:`, `answers:`."
    )


def find_columns(rows: datasets.DatasetDict, config: DataConfig) -> Columns:
    """The columns of both splits, as load_rows has checked them."""
    return detect_columns(rows["train"].column_names, config, config.train)


def check_columns(rows: datasets.Dataset, columns: Columns, where: str) -> None:
    """Every role's column is there, holds no null, and text is text. Rows are counted from 1."""
    for role, column in columns.used().items():
        if column not in rows.column_names:
            raise DataError(f"{where} has no column {column!r} ({role}); its columns are {rows.column_names}.")
        values = rows.data.column(column)
        if values.null_count:
            row = values.is_null().to_pylist().index(True) + 1
            raise DataError(
                f"{where}: {values.null_count} of {len(values)} rows have no value in column {column!r}, the first is "
                f"row {row}. Fill them in or remove those rows."
            )
        dtype = rows.data.schema.field(column).type
        if role in STRINGS and not (pa.types.is_string(dtype) or pa.types.is_large_string(dtype)):
            raise DataError(f"{where}: column {column!r} ({role}) holds {dtype}, not text. Write its values as text.")
