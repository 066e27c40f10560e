"""Two processes that stay alive for a whole test session and talk over gloo.

A test asks for the `gloo` fixture and calls `gloo.run(fn, *args)`, with `fn(rank, world_size, *args)` at the top
level of a test module. Inside `fn`, `Trainer(**ddp_trainer_kwargs())` trains in the running process group.
"""

import os
import random
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD_SIZE = 2
_SILENT = "no answer in time, or the process died"


class WorkerError(AssertionError):
    """An exception in a worker process, with that worker's traceback as its message."""


class GlooPool:
    """Two worker processes joined in one gloo process group on this machine.

    Args:
        timeout: Seconds that one call may take, and that a collective waits for the other rank.
    """

    def __init__(self, timeout: float = 200.0) -> None:
        self.timeout = timeout
        self._start()

    def run(self, fn: Callable[..., Any], *args: Any) -> list[Any]:
        """Calls `fn(rank, world_size, *args)` in both processes.

        Args:
            fn: A picklable function that returns something picklable.
            *args: Picklable arguments, the same for both.

        Returns:
            The result of each rank.

        Raises:
            WorkerError: If a rank raised, died, or did not answer in time; the next call starts with a new group.
        """
        for pipe in self._pipes:
            pipe.send((self._port, fn, args))
        answers = self._collect()
        errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(answers) if error is not None]
        if not errors:
            return [result for result, _ in answers]
        if any(error == _SILENT for _, error in answers):
            self.close()
            self._start()
        self._port = _free_port()
        raise WorkerError("\n".join(errors))

    def _collect(self) -> list[tuple[Any, str | None]]:
        answers: dict[int, tuple[Any, str | None]] = {}
        deadline = time.monotonic() + self.timeout
        while len(answers) < WORLD_SIZE and (left := deadline - time.monotonic()) > 0:
            waiting = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in answers}
            for pipe in wait(list(waiting), timeout=left):
                rank = waiting[pipe]
                try:
                    answers[rank] = pipe.recv()
                except (EOFError, ConnectionError):
                    answers[rank] = None, _SILENT
                if answers[rank][1] is not None:
                    deadline = min(deadline, time.monotonic() + 10)
        return [answers.get(rank, (None, _SILENT)) for rank in range(WORLD_SIZE)]

    def close(self) -> None:
        """Ends both processes."""
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self._port = _free_port()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(WORLD_SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(rank, self.timeout, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)


def ddp_trainer_kwargs() -> dict[str, Any]:
    """Returns the Trainer arguments with which a worker of the pool trains under DDP, launching nothing."""
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    strategy = DDPStrategy(cluster_environment=LightningEnvironment(), process_group_backend="gloo")
    return {"accelerator": "cpu", "devices": WORLD_SIZE, "strategy": strategy}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _work(rank: int, timeout: float, pipe: Connection) -> None:
    torch.set_num_threads(1)
    with suppress(EOFError):
        while (task := pipe.recv()) is not None:
            port, fn, args = task
            try:
                _join(rank, port, timeout)
                pipe.send((fn(rank, WORLD_SIZE, *args), None))
            except BaseException:
                error = traceback.format_exc()
                _leave()  # wakes the other rank if it waits in a collective
                pipe.send((None, error))
    _leave()


def _join(rank: int, port: int, timeout: float) -> None:
    if os.environ.get("MASTER_PORT") != str(port):
        _leave()
    os.environ |= {
        "GLOO_SOCKET_IFNAME": "lo",
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "WANDB_MODE": "disabled",
        "WORLD_SIZE": str(WORLD_SIZE),
    }
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
