"""Two real processes in one gloo group, kept for a whole test file: starting them costs more than most of the tests."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 100  # after which a run is given up: a group waits for ever for a process that failed
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rankwise", "torch.distributed.fsdp"])


def serve(rank: int, meeting: str, connection: Connection) -> None:
    """Run what comes through the connection, one function after the other, until None comes."""
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    while (task := connection.recv()) is not None:
        function, arguments = task
        try:
            connection.send((True, function(*arguments)))
        except BaseException:
            connection.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Pair:
    """`run` calls a function of a module in both processes; after one failed they are not used again."""

    def __init__(self, folder: Path) -> None:
        pipes = [PROCESSES.Pipe() for _ in range(2)]
        self.connections = [ours for ours, _ in pipes]
        self.processes = [
            PROCESSES.Process(target=serve, args=(rank, str(folder / "meeting"), theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
        """What the function returned in either process."""
        for connection in self.connections:
            connection.send((function, arguments))
        answers = []
        for rank, connection in enumerate(self.connections):
            if not connection.poll(SECONDS):
                raise TimeoutError(
                    f"process {rank} of {function.__name__}{arguments} gave no answer; so far: {answers}"
                )
            answers.append(connection.recv())
        assert all(well for well, _ in answers), "\n".join(str(said) for well, said in answers if not well)
        return answers[0][1], answers[1][1]

    def close(self) -> None:
        for connection in self.connections:
            connection.send(None)
        for process in self.processes:
            process.join(5)
            process.kill()
