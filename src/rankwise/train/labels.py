"""The labels of a classification task, and what can be reached without reading the text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import pyarrow as pa

from rankwise.errors import DataError

Label = str | int


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """The classes in the order of the model's outputs."""

    names: tuple[str, ...]
    to_id: dict[Label, int]
    """From the value in the data to the model's output."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """As a model's config keeps it."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """As a model's config keeps it."""
        return {name: place for place, name in enumerate(self.names)}

    def encode(self, values: Sequence[Label], where: str) -> list[int]:
        """Raises DataError for a label that training has not seen."""
        unseen = Counter(value for value in values if value not in self.to_id)
        if unseen:
            examples = ", ".join(f"{value!r} ({count} rows)" for value, count in unseen.most_common(5))
            raise DataError(
                f"{where} has labels outside the set seen in training: {examples}; "
                f"training has {list(self.to_id)[:20]}. "
                "Correct them, or train on rows that bear every label (a larger max_train_rows, another seed)."
            )
        return [self.to_id[value] for value in values]


def labels_of(rows: datasets.Dataset, column: str) -> LabelSet:
    """Declared names (hub) in their order, otherwise the sorted values. Raises DataError for unusable labels."""
    feature = rows.features[column]
    if isinstance(feature, datasets.ClassLabel):
        label_values(rows, column, "the training rows")
        return LabelSet(names=tuple(feature.names), to_id={place: place for place in range(len(feature.names))})
    values = sorted(set(label_values(rows, column, "the training rows")))
    if len(values) < 2:
        raise DataError(
            f"all training rows bear the label {values[0]!r} in column {column!r}; a classifier needs at least two."
        )
    return LabelSet(names=tuple(map(str, values)), to_id={value: place for place, value in enumerate(values)})


def label_values(rows: datasets.Dataset, column: str, where: str) -> list[Label]:
    """The labels as words or whole numbers. Raises DataError for fractions, blanks and hidden labels (-1)."""
    values = list(rows[column])
    dtype = rows.data.schema.field(column).type
    if pa.types.is_floating(dtype):
        values = whole_numbers(values, column, where)
    elif pa.types.is_boolean(dtype):
        values = [str(value) for value in values]
    elif not (pa.types.is_integer(dtype) or pa.types.is_string(dtype) or pa.types.is_large_string(dtype)):
        raise DataError(f"{where}: label column {column!r} holds {dtype}; classes are words or whole numbers.")
    refuse_hidden(values, column, where)
    return values


def refuse_hidden(values: list[Label], column: str, where: str) -> None:
    for wrong, meaning in ((-1, "marks a hidden label, as in the test splits of GLUE"), ("", "is no label")):
        if wrong in values:
            raise DataError(
                f"{where}: label {wrong!r} in column {column!r} ({values.count(wrong)} rows, the first is row "
                f"{values.index(wrong) + 1}) {meaning}. Remove those rows; a class of its own needs a name."
            )


def whole_numbers(values: list[float], column: str, where: str) -> list[Label]:
    fraction = next((value for value in values if not value.is_integer()), None)
    if fraction is not None:
        raise DataError(
            f"{where}: label {fraction} in column {column!r} is no class; use `task: regression`, or whole numbers."
        )
    return [int(value) for value in values]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a model reaches that never reads its input."""

    name: str
    """Such as "always 'sports'"."""
    metric: str
    """Name of the metric that `value` is to be compared with."""
    value: float


def majority(train: Sequence[int], validation: Sequence[int], labels: LabelSet) -> Baseline:
    """Accuracy on validation of always saying what is most common in training (ties: the first class)."""
    counts = Counter(train)
    common = max(range(len(labels)), key=lambda place: counts[place])
    share = sum(value == common for value in validation) / len(validation)
    return Baseline(name=f"always {labels.names[common]!r}", metric="accuracy", value=share)


def mean_prediction(train: Sequence[float], validation: Sequence[float]) -> Baseline:
    """Mean squared error on validation of always saying the mean of training (its correlation is undefined)."""
    mean = sum(train) / len(train)
    error = sum((value - mean) ** 2 for value in validation) / len(validation)
    return Baseline(name=f"always {mean:.4g}", metric="mse", value=error)
