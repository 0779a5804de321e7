"""One cell: an ordinary run, and what it comes to as a line of runs.jsonl. Runs in a process of its own."""

import shutil
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from rankwise.compare.grid import Cell
from rankwise.errors import ConfigError, FolderError, NonFiniteError, RankwiseError
from rankwise.train import record
from rankwise.train.config import RunConfig
from rankwise.train.run import train

LOWER_IS_BETTER = {"loss", "perplexity", "mse"}


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train, or go on from the run's last checkpoint, or read what a run that has ended wrote. Raises nothing.

    A run whose gradients are not finite any more has found out about its learning rate: in a search its score is None.
    """
    folder = Path(cell.config.output)
    try:
        resumed = (folder / record.CHECKPOINTS).is_dir()
        return cell.identity | _scored(cell, _results(cell.config)) | {"resumed": resumed}
    except NonFiniteError as error:
        if cell.purpose == "search":
            return cell.identity | _diverged(cell, str(error))
        return cell.identity | failure(str(error))
    except RankwiseError as error:
        return cell.identity | failure(str(error))
    except Exception as error:
        # whatever it is, the other cells go on, and the record tells
        return cell.identity | failure(f"{type(error).__name__}: {error}") | {"traceback": traceback.format_exc()}


def failure(reason: str) -> dict[str, Any]:
    """The rest of the record of a cell that could not be run."""
    return {"score": None, "error": reason}


def _results(config: RunConfig) -> Mapping[str, Any]:
    """results.json of the run, which is made if it is not there. A finished run needs its checkpoints no more."""
    folder = Path(config.output)
    if not (folder / record.RESULTS).is_file():
        train(config, Console(quiet=True), resume=True)
    results: dict[str, Any] = record.read_run(folder)["results"]
    shutil.rmtree(folder / record.CHECKPOINTS, ignore_errors=True)
    return results


def _scored(cell: Cell, results: Mapping[str, Any]) -> dict[str, Any]:
    metric = cell.entry.metric or results["primary"]
    if metric not in results["scores"]:
        raise ConfigError(f"metric={metric!r} is none of the scores of {cell.entry.task}: {list(results['scores'])}.")
    for name in ("trainable_average", "head_parameters"):
        if name not in results:
            raise FolderError(f"{cell.config.output} was made by an older version: it has no {name}. Remove it.")
    return {
        "metric": metric,
        "higher_is_better": better_upwards(metric, cell.entry.higher_is_better),
        "score": results["scores"][metric],
        "scores": results["scores"],
        "trainable_start": results["trainable_start"],
        "trainable_end": results["trainable_end"],
        "trainable_average": results["trainable_average"],
        "head_parameters": results["head_parameters"],
        "seconds": results["seconds"],
        "peak_memory": results["peak_memory"],
        "steps": results["steps"],
        "folder": str(Path("runs") / cell.name),
    }


def better_upwards(metric: str, told: bool | None) -> bool:
    return metric not in LOWER_IS_BETTER if told is None else told


def _diverged(cell: Cell, reason: str) -> dict[str, Any]:
    metric = cell.entry.metric
    upwards = True if metric is None else better_upwards(metric, cell.entry.higher_is_better)
    return {"metric": metric, "higher_is_better": upwards, "score": None, "scores": {}, "diverged": reason}
