"""Cells as tasks of Ray: on this machine, or on the cluster that RAY_ADDRESS names, whose machines share the disk.

A task whose worker dies is begun again by Ray, on any machine, and its run goes on from its last checkpoint.
"""

import os
from pathlib import Path
from typing import Any

import torch

from rankwise.compare.cell import failure, run_cell
from rankwise.compare.grid import Cell
from rankwise.compare.processes import Done
from rankwise.errors import ConfigError, not_installed
from rankwise.train.quiet import quiet_libraries

RETRIES = 3  # of a cell whose worker died


class OnRay:
    """As many cells at a time as the cluster has room for, or `workers`; each takes `cpus` and `gpus`."""

    def __init__(self, workers: int | None, cpus: int, gpus: float) -> None:
        self.ray = _ray()
        self.ray.init(log_to_driver=False, ignore_reinit_error=True)
        self.workers = self._room(cpus, gpus) if workers is None else workers
        self.cpus = cpus
        # a new process for each cell, so that its peak of memory is its own
        settings = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES, "max_calls": 1}
        self.task = self.ray.remote(**settings)(_work)
        self.running: dict[Any, Cell] = {}

    def _room(self, cpus: int, gpus: float) -> int:
        """A run takes one machine: what is left over on several makes no room for it."""
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        has = [(machine.get("CPU", 0), machine.get("GPU", 0)) for machine in machines]
        room = sum(int(min(own // cpus, own_gpus / gpus if gpus else own)) for own, own_gpus in has)
        if not room:
            told = ", ".join(f"{own:g} and {own_gpus:g}" for own, own_gpus in has)
            raise ConfigError(
                f"no machine of the cluster has room for a run of {cpus} processors and {gpus:g} GPUs: they have "
                f"{told}. Give --cpus and --gpus that one of them has."
            )
        return room

    def has_room(self) -> bool:
        return len(self.running) < self.workers

    def begin(self, cell: Cell) -> None:
        self.running[self.task.remote(cell, self.cpus, str(Path.cwd()))] = cell

    def ended(self, timeout: float | None) -> list[Done]:
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=timeout)
        return [(cell, self._result(cell, reference)) for reference in ready for cell in [self.running.pop(reference)]]

    def _result(self, cell: Cell, reference: Any) -> dict[str, Any]:
        try:
            record: dict[str, Any] = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            return cell.identity | failure(f"its worker ended {RETRIES + 1} times without a result: {error}")
        return record

    def stop(self) -> None:
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        self.running = {}
        self.ray.shutdown()


def _work(cell: Cell, threads: int, folder: str) -> dict[str, Any]:
    os.chdir(folder)  # paths of the spec may be relative to where the comparison was called
    torch.set_num_threads(threads)
    quiet_libraries()
    return run_cell(cell)


def _ray() -> Any:
    try:
        import ray  # seconds to import, and only this executor needs it
    except ImportError:
        raise ConfigError(not_installed("--executor ray", "ray", "compare")) from None
    return ray
