"""The rows of a run: read from a file, a folder or the hub, checked, split, and drawn."""

from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa

from rankwise.errors import DataError, nearest
from rankwise.io.model_card import HUB_ID
from rankwise.train.columns import check_columns, detect_columns, known_names
from rankwise.train.data_config import DataConfig
from rankwise.train.drawing import draw, hold_out
from rankwise.train.files import READERS, Wanted, read_file

VALIDATION_STEMS = ("validation", "valid", "val", "dev")
Splits = tuple[datasets.Dataset, datasets.Dataset | None]


def load_rows(config: DataConfig) -> datasets.DatasetDict:
    """Splits "train" and "validation", as they are in the files, at most as many rows as the config allows.

    Everything that can be wrong with a file is found here, before a model is loaded: see DataError's messages.
    """
    train, validation = read_splits(config)
    columns = detect_columns(train.column_names, config, config.train)
    check_columns(train, columns, config.train)
    if validation is None:
        train, validation = hold_out(train, columns.prompt, config)
    else:
        check_columns(validation, columns, config.validation or f"{config.train} (validation)")
    return datasets.DatasetDict(
        train=draw(train, config.max_train_rows, None, config.seed),
        validation=draw(validation, config.max_validation_rows, columns.prompt, config.seed),
    )


def read_splits(config: DataConfig) -> Splits:
    """Training rows, and validation rows where the source or the config has them."""
    path = Path(config.train).expanduser()
    if path.is_dir():
        train, validation = read_folder(path, config)
    elif path.is_file():
        train, validation = read_file(path, wanted_of(config)), None
    elif is_local(config.train):
        raise DataError(missing_file(path))
    else:
        return read_hub(config)
    if config.validation is not None:
        validation = read_existing(config.validation, train, config)
    return train, validation


def wanted_of(config: DataConfig) -> Wanted:
    return Wanted(label=config.label or "label", names=known_names(config))


def wanted_beside(train: datasets.Dataset, config: DataConfig) -> Wanted:
    """For validation rows: a label has the type that it has in training, where the file itself leaves that open."""
    wanted = wanted_of(config)
    types = {name: train.data.schema.field(name).type for name in train.column_names if name == wanted.label}
    return replace(wanted, label_is_text=any(map(_is_text, types.values())))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_local(source: str) -> bool:
    """A name that can only be meant as a path: known suffix, or no hub id."""
    return Path(source).suffix in READERS or HUB_ID.fullmatch(source) is None


def missing_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path} does not exist, and neither does its folder."
    beside = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in READERS)
    there = f"the data files in its folder are {beside[:10]}" if beside else "its folder holds no data files"
    return f"{path} does not exist; {there}.{nearest(path.name, beside)}"


def read_existing(source: str, train: datasets.Dataset, config: DataConfig) -> datasets.Dataset:
    """Validation rows from a file of their own."""
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(missing_file(path))
    return read_file(path, wanted_beside(train, config))


def read_folder(folder: Path, config: DataConfig) -> Splits:
    path = split_file(folder, ("train",))
    if path is None:
        there = sorted(entry.name for entry in folder.iterdir())
        raise DataError(
            f"{folder} has no train file ({', '.join('train' + s for s in READERS)}); it holds {there[:10]}."
        )
    validation = split_file(folder, VALIDATION_STEMS)
    train = read_file(path, wanted_of(config))
    return train, read_file(validation, wanted_beside(train, config)) if validation else None


def split_file(folder: Path, stems: tuple[str, ...]) -> Path | None:
    """The one file of a split, None if there is none. Raises DataError when there are several."""
    found = sorted(entry for entry in folder.iterdir() if entry.stem in stems and entry.suffix in READERS)
    if len(found) > 1:
        names = [entry.name for entry in found]
        raise DataError(f"{folder} holds {names}: which one is meant? Name the file instead of the folder.")
    return found[0] if found else None


def read_hub(config: DataConfig) -> Splits:
    """Splits of a hub data set; "test" is never used for validation unless it is named."""
    splits = download(config)
    if "train" not in splits:
        raise DataError(f"{config.train} on the hub has no split 'train'; it has {list(splits)}.")
    if config.validation is None:
        return splits["train"], own_validation(splits, config)
    if config.validation in splits:
        return splits["train"], splits[config.validation]
    if is_local(config.validation) or Path(config.validation).expanduser().is_file():
        return splits["train"], read_existing(config.validation, splits["train"], config)
    raise DataError(
        f"validation={config.validation!r} is no split of {config.train} and no file; its splits are {list(splits)}."
        + nearest(config.validation, splits)
    )


def download(config: DataConfig) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(config.train, config.subset)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{config.train!r} is no file or folder here, and the hub did not give it"
            f"{f' (subset {config.subset!r})' if config.subset else ''}: {error}"
        ) from error


def own_validation(splits: datasets.DatasetDict, config: DataConfig) -> datasets.Dataset | None:
    if "validation" in splits:
        return splits["validation"]
    several = [name for name in splits if name.startswith("validation")]
    if several:
        raise DataError(f"{config.train} has several validation splits {several}; choose one with `validation:`.")
    return None
