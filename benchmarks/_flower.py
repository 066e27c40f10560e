"""Seconds of a round by Flower's simulation, beside those of the backends in one process.

`python -m benchmarks._flower [--quick] [--json FILE]`
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from benchmarks._harness import medians, run, table
from lit_methods.federated import FederatedModule, LoopBackend, SpectralCoDistillation, VectorizedBackend

_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def flower_seconds_per_round(
    network: str, clients: int, epochs: int, participation: float = 1.0, rounds: int = 4
) -> float | None:
    """Median seconds of a round of two stages without terms, as in the other sides; None where Flower is absent.

    Starting Flower and Ray, and the first round, are not counted. Ray works with as many processes as there are cores.

    Args:
        network: Name in `benchmarks.federated.networks`.
        clients: Clients, which are as many nodes.
        epochs: Local epochs of each stage.
        participation: Part of the clients in a round.
        rounds: Rounds that are measured.
    """
    if find_spec("flwr") is None or find_spec("ray") is None:
        return None
    arguments = [network, clients, epochs, participation, rounds]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._flower", *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | _QUIET,
    )
    return float(done.stdout.split("seconds ")[-1])


@dataclass(frozen=True)
class Job:
    """What server and nodes build: the network and the clients of `benchmarks.federated`."""

    network: str
    clients: int
    epochs: int
    participation: float

    def __call__(self, config: Any) -> tuple[FederatedModule, LightningDataModule]:
        from benchmarks.federated import BATCH, CLASSES, Client, networks, sgd

        torch.manual_seed(0)
        network, shape = networks()[self.network]
        module = FederatedModule(
            network, CLASSES, SpectralCoDistillation(0.0, 0.0), self.participation, local_epochs=self.epochs,
            batch_size=BATCH, optimizer=sgd, backend=LoopBackend(),
        )  # fmt: skip
        return module, _Data([Client(20 + 2 * (i % 10), shape) for i in range(self.clients)])


class _Data(LightningDataModule):
    fingerprint = "random"

    def __init__(self, clients: Sequence[Any]) -> None:
        super().__init__()
        self.clients = clients

    def __len__(self) -> int:
        return len(self.clients)

    def __getitem__(self, client: int) -> Any:
        return self.clients[client]

    def train_dataloader(self) -> _Round:
        return _Round(self)

    def val_dataloader(self) -> list[Any]:
        return []


class _Round:
    def __init__(self, federation: _Data) -> None:
        self.federation = federation

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[_Data]:
        yield self.federation


class _Watch(Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def simulate(network: str, clients: str, epochs: str, participation: str, rounds: str) -> None:
    """Runs one job in this process, and prints its seconds."""
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    # by this name, as `__main__` is another module in Ray's processes
    from benchmarks._flower import Job
    from lit_methods.federated.flower import client_app, fit_on_flower

    job, watch = Job(network, int(clients), int(epochs), float(participation)), _Watch()

    def fit(grid: Grid, context: Context) -> None:
        trainer = Trainer(
            accelerator="cpu", devices=1, max_epochs=1 + int(rounds), limit_val_batches=0, callbacks=[watch],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        fit_on_flower(trainer, *job({}), grid)

    server = ServerApp()
    server.main()(fit)
    run_simulation(
        server, client_app(job), int(clients), backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    )
    print(f"seconds {statistics.median(watch.seconds[1:])}")


def flower(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Wall time of a round of two stages without terms: one process by the loop and vectorized, and Flower."""
    from benchmarks.federated import Client, engine_round, networks

    rows: list[dict[str, Any]] = []
    epochs, rounds = (1, 3) if quick else (5, 6)
    cases = itertools.product(("MLP",) if quick else ("MLP", "CNN"), ((20, 1.0),) if quick else ((20, 1.0), (100, 0.1)))
    for name, (count, participation) in cases:
        network, shape = networks()[name]
        clients = [Client(20 + 2 * (i % 10), shape) for i in range(int(participation * count))]
        sides = {
            side: engine_round(SpectralCoDistillation(0.0, 0.0), backend, network, clients, epochs)
            for side, backend in (("loop", LoopBackend()), ("vectorized", VectorizedBackend()))
        }
        # before and after, because Flower's rounds cannot be interleaved with the others
        before, seconds = medians(sides, 3), flower_seconds_per_round(name, count, epochs, participation, rounds)
        after = medians(sides, 3)
        row: dict[str, Any] = {"network": name, "clients": count, "participation": participation}
        row |= {side: (before[side] + after[side]) / 2 for side in sides}
        rows.append(row | {"flower": "" if seconds is None else seconds})
    table("seconds of a round", list(rows[0]), [list(row.values()) for row in rows])
    return {}, rows


if __name__ == "__main__":
    if len(sys.argv) == 6:
        simulate(*sys.argv[1:])
    else:
        run(__doc__ or "", flower)
