"""Memory of a run in which a thousand clients keep personal models of 300,000 weights, in memory or on disk.

`python -m benchmarks._spill ROUNDS [FOLDER]` prints what one run took; `benchmarks.federated` compares both.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from benchmarks._rounds import CLASSES, Client
from lit_methods.backbones import MLP
from lit_methods.federated import Ditto, EvaluationBatch, FederatedModule, VectorizedBackend

CLIENTS, EXAMPLES, IN_A_ROUND = 1000, 4, 50


class Federation:
    """Clients with a few random examples each."""

    fingerprint = "random clients"

    def __init__(self) -> None:
        self.clients = [Client(EXAMPLES, (1, 8, 8)) for _ in range(CLIENTS)]

    def __len__(self) -> int:
        return len(self.clients)

    def __getitem__(self, client: int) -> Client:
        return self.clients[client]


class Loader:
    """The same batch, once."""

    def __init__(self, batch: object) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[object]:
        return iter([self.batch])


def _unshared_mib() -> float:
    """Memory of this process that no file backs, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))) / 1024


@contextmanager
def _peak(found: list[float]) -> Iterator[None]:
    """Adds to a list the most memory that was in use at once, looked at every 5 ms."""
    ended = threading.Event()

    def watch() -> None:
        most = 0.0
        while not ended.wait(0.005):
            most = max(most, _unshared_mib())
        found.append(most)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def run(folder: str | None, rounds: int) -> dict[str, float]:
    """Trains and evaluates all clients, then saves; returns the peaks of both, in MiB beyond what was in use before."""
    data, network = Federation(), MLP(64, [512, 512], CLASSES)
    module = FederatedModule(
        network, CLASSES, Ditto(), clients_per_round=IN_A_ROUND, local_epochs=1, batch_size=EXAMPLES,
        backend=VectorizedBackend(), spill_folder=folder,
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=rounds, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, check_val_every_n_epoch=rounds,
    )  # fmt: skip
    test = Client(64, (1, 8, 8))
    batch = EvaluationBatch(test.inputs, test.labels, torch.ones(64, CLIENTS, dtype=torch.bool), data)
    before, peaks = _unshared_mib(), list[float]()
    with _peak(peaks):
        trainer.fit(module, Loader(data), Loader(batch))
    with tempfile.TemporaryDirectory() as checkpoints, _peak(peaks):
        trainer.save_checkpoint(Path(checkpoints) / "all.ckpt")
    models = len(module.state.personal)
    training, saving = (peak - before for peak in peaks)
    size = models * module.layout.size * 4 / 2**20
    return {"clients": models, "models_mib": size, "training_mib": training, "saving_mib": saving}


def compare(rounds: int) -> list[dict[str, float | str]]:
    """Both runs, each in a fresh process."""
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, place in (("in memory", []), ("on disk", [folder])):
            command = [sys.executable, "-m", "benchmarks._spill", str(rounds), *place]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows.append({"personal models": name, **json.loads(text.splitlines()[-1])})
    return rows


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps(run(sys.argv[2] if len(sys.argv) > 2 else None, int(sys.argv[1]))))
