"""The run folder: config.yaml, environment.json, history.jsonl, metrics.jsonl, results.json, adapter/, checkpoints/."""

import math
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from rankwise.adapter import Method
from rankwise.errors import ConfigError, FolderError
from rankwise.io.atomic import replaced_file, write_json
from rankwise.io.description import fits, method_as_dict
from rankwise.io.folder import DESCRIPTION
from rankwise.io.run_files import CONFIG as CONFIG
from rankwise.io.run_files import ENVIRONMENT as ENVIRONMENT
from rankwise.io.run_files import HISTORY as HISTORY
from rankwise.io.run_files import METRICS as METRICS
from rankwise.io.run_files import RESULTS as RESULTS
from rankwise.io.sources import is_peft
from rankwise.io.untrusted import brief, read_json
from rankwise.io.untrusted_yaml import MOST_YAML, read_mapping
from rankwise.train.config import RunConfig

ADAPTER, CHECKPOINTS, TENSORBOARD = "adapter", "checkpoints", "tensorboard"


def config_as_dict(config: RunConfig) -> dict[str, Any]:
    """The whole configuration as plain data, defaults included: what `rankwise train` reads."""
    return {f.name: _plain(vars(config)[f.name]) for f in fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, Method):
        return method_as_dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(vars(value)[f.name]) for f in fields(value)}
    return value


def finite(data: Any) -> Any:
    """`data` with None for NaN and infinities, which JSON has not."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def begin(folder: Path, config: RunConfig, *, resume: bool) -> None:
    """Make the run folder, with configuration and environment; with `resume`, an unfinished run of the same
    configuration may be in it. Raises FolderError if another run is."""
    check_output(folder, config, resume=resume)
    if (folder / CONFIG).exists():
        return
    text = yaml.safe_dump(config_as_dict(config), sort_keys=False, allow_unicode=True)
    if len(text.encode()) > MOST_YAML:
        raise ConfigError(f"the configuration takes more than {MOST_YAML:,} bytes. Name layers by a pattern.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / ENVIRONMENT, environment())
        with replaced_file(folder / CONFIG) as file:  # last: a folder that has it has all that a run begins with
            file.write(text)
    except FolderError:
        raise
    except OSError as error:
        raise FolderError(f"output={str(folder)!r} cannot be written: {error}.") from error


def check_output(folder: Path, config: RunConfig, *, resume: bool) -> None:
    """Raise what `begin` would, without making the folder."""
    if (folder / CONFIG).exists():
        _check_resumable(folder, config, resume)
    elif folder.exists() and not folder.is_dir():
        raise FolderError(f"output={str(folder)!r} is a file, not a folder.")


def _check_resumable(folder: Path, config: RunConfig, resume: bool) -> None:
    if not resume:
        raise FolderError(f"{folder} holds a run already. Continue it with --resume, or give another output.")
    if (folder / RESULTS).exists():
        raise FolderError(f"{folder} holds a finished run; there is nothing to resume. `rankwise evaluate` reads it.")
    saved, given = _fields(read_config(folder)), _fields(config_as_dict(config))
    for name in sorted(given.keys() | saved.keys()):
        if saved.get(name) != given.get(name):
            raise ConfigError(
                f"{folder} was begun with {name}={saved.get(name)!r}, and is to be resumed with {given.get(name)!r}. "
                f"Resume with {folder / CONFIG}, or begin a new run in another output."
            )


def _fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"training.learning_rate": 0.001, ...}"""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _fields(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return flat


def environment() -> dict[str, Any]:
    """What a run depends on beside its configuration."""
    packages = ("rankwise", "torch", "transformers", "accelerate", "datasets", "trl", "torchmetrics")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in packages if find_spec(name) is not None},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
    }


def read_run(folder: Path) -> dict[str, Any]:
    """{"config": ..., "results": ...} of a finished run. Raises FolderError if it is none."""
    for name in (CONFIG, RESULTS):
        if not (folder / name).is_file():
            raise FolderError(
                f"{folder} is no finished run: it has no {name}. Give the `output` of a `rankwise train` that ended."
            )
    return {"config": read_config(folder), "results": read_results(folder)}


def adapter_in(folder: Path) -> Path | None:
    """The adapter folder, native or PEFT's, that a folder is, or that a run or a checkpoint holds."""
    return next((f for f in (folder / ADAPTER, folder) if (f / DESCRIPTION).is_file() or is_peft(f)), None)


def read_config(folder: Path) -> dict[str, Any]:
    """The mapping in a run's configuration file. Raises FolderError."""
    return read_mapping(folder / CONFIG, folder)


def read_results(folder: Path) -> dict[str, Any]:
    """What a run reached. Raises FolderError unless its scores are numbers by name, with the primary one among them."""
    path = folder / RESULTS
    results = read_json(path, folder)
    scores, primary = results.get("scores"), results.get("primary")
    if not isinstance(scores, dict) or not all(fits(score, float | None) for score in scores.values()):
        raise FolderError(f"{path}: scores are {brief(scores)}, not numbers by name.")
    if not isinstance(primary, str) or primary not in scores:
        raise FolderError(f"{path}: primary is {brief(primary)}, which is none of the scores.")
    return results


def peak_memory() -> int:
    """Largest memory in bytes: of the accelerator's allocator if there is one, else resident memory of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
