"""The run folder: config.yaml, environment.json, history.jsonl, metrics.jsonl, results.json, adapter/, checkpoints/."""

import json
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from rankwise.adapter import Method
from rankwise.errors import ConfigError, FolderError
from rankwise.io.folder import method_as_dict
from rankwise.train.config import RunConfig

CONFIG, ENVIRONMENT, HISTORY, METRICS, RESULTS = (
    "config.yaml",
    "environment.json",
    "history.jsonl",
    "metrics.jsonl",
    "results.json",
)
ADAPTER, CHECKPOINTS = "adapter", "checkpoints"


def config_as_dict(config: RunConfig) -> dict[str, Any]:
    """The whole configuration as plain data, defaults included: what `rankwise train` reads."""
    return {f.name: _plain(vars(config)[f.name]) for f in fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, Method):
        return method_as_dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(vars(value)[f.name]) for f in fields(value)}
    return value


def begin(folder: Path, config: RunConfig) -> None:
    """Make the run folder, with configuration and environment. Raises FolderError if another run is in it."""
    if (folder / CONFIG).exists():
        raise FolderError(f"{folder} holds a run already. Give another output, or remove that folder.")
    if folder.exists() and not folder.is_dir():
        raise FolderError(f"output={str(folder)!r} is a file, not a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(config_as_dict(config), sort_keys=False, allow_unicode=True)
        (folder / CONFIG).write_text(text, encoding="utf-8")
        write_json(folder / ENVIRONMENT, environment())
    except OSError as error:
        raise FolderError(f"output={str(folder)!r} cannot be written: {error}.") from error


def environment() -> dict[str, Any]:
    """What a run depends on beside its configuration."""
    packages = ("rankwise", "torch", "transformers", "accelerate", "datasets", "trl", "torchmetrics")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
    }


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def read_run(folder: Path) -> dict[str, Any]:
    """{"config": ..., "results": ...} of a finished run. Raises FolderError if it is none."""
    for name in (CONFIG, RESULTS):
        if not (folder / name).is_file():
            raise FolderError(f"{folder} is no finished run: it has no {name}.")
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise FolderError(f"{folder}: {CONFIG} or {RESULTS} cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(results, dict):
        raise ConfigError(f"{folder}: {CONFIG} and {RESULTS} must each hold one mapping.")
    return {"config": config, "results": results}


def peak_memory() -> int:
    """Largest memory in bytes: of the accelerator's allocator if there is one, else resident memory of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
