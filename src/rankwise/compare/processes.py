"""Cells in processes of this machine, each in a new one: its peak of memory is its own, and it dies with its parent.

They are forked from one server that has imported everything, so that a cell starts at once.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import torch

from rankwise.compare.cell import failure, run_cell
from rankwise.compare.grid import Cell
from rankwise.train.quiet import quiet_libraries

PATIENCE = 10.0  # seconds, for a process that was asked to end

Done = tuple[Cell, dict[str, Any]]


class Executor(Protocol):
    """What runs cells."""

    def has_room(self) -> bool:
        """Whether another cell can be begun."""

    def begin(self, cell: Cell) -> None: ...

    def ended(self, timeout: float | None) -> list[Done]:
        """Wait until cells have ended, at most so many seconds. Their records; a cell that died has an error."""

    def stop(self) -> None:
        """End what is running; it can be resumed."""


@dataclass(frozen=True)
class _Running:
    cell: Cell
    process: Any
    channel: Connection


class Processes:
    """`workers` cells side by side, which share the threads that torch may use."""

    def __init__(self, workers: int, log: Path) -> None:
        self.workers, self.log = workers, log
        self.threads = max(1, torch.get_num_threads() // workers)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["rankwise.compare.processes"])
        self.running: list[_Running] = []

    def has_room(self) -> bool:
        return len(self.running) < self.workers

    def begin(self, cell: Cell) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(cell, self.threads, self.log, theirs), daemon=True)
        process.start()
        theirs.close()
        self.running.append(_Running(cell, process, ours))

    def ended(self, timeout: float | None) -> list[Done]:
        ready = wait([running.channel for running in self.running], timeout)
        done = [running for running in self.running if running.channel in ready]
        self.running = [running for running in self.running if running.channel not in ready]
        return [(running.cell, _result(running)) for running in done]

    def stop(self) -> None:
        for running in self.running:
            running.process.terminate()
        for running in self.running:
            running.process.join(PATIENCE)
            running.process.kill()
        self.running = []


def _result(running: _Running) -> dict[str, Any]:
    try:
        record: dict[str, Any] = running.channel.recv()
    except EOFError:
        running.process.join()
        code = running.process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        record = running.cell.identity | failure(f"its process ended without a result ({how}).")
    running.process.join()
    running.channel.close()  # only now, for it would end a process that is still closing down
    return record


def _work(cell: Cell, threads: int, log: Path, channel: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a ctrl-C the parent decides what becomes
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # in Python's own way, which tidies up
    Thread(target=_end_with_parent, args=(channel, os._exit), daemon=True).start()
    with log.open("a", encoding="utf-8") as file:
        for standard in (1, 2):
            os.dup2(file.fileno(), standard)
    torch.set_num_threads(threads)
    quiet_libraries()
    channel.send(run_cell(cell))


def _end_with_parent(channel: Connection, leave: Callable[[int], Any]) -> None:
    """Nothing is ever sent this way: the channel only ends, with the process at its other end."""
    try:
        channel.recv()
    except (EOFError, OSError):
        leave(1)
