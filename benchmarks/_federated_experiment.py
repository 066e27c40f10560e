"""The comparison on real data as an experiment: data sets, networks, methods, and one run of one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lit_methods.datamodules import (
    BernoulliDirichletPartition,
    FashionMNISTDataModule,
    FederatedDataModule,
    HubImageDataModule,
)
from lit_methods.datamodules.dataset import ImageDataset
from lit_methods.datamodules.images import ImageDataModule
from lit_methods.federated import (
    Ditto,
    FedAvg,
    FedProx,
    FedRep,
    FedRoD,
    LocalOnly,
    LoopBackend,
    Models,
    SpectralCoDistillation,
    Strategy,
    VectorizedBackend,
)
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.module import FederatedModule

SKEWS = ((0.5, 1.0), (0.3, 1.0), (0.7, 10.0))
TESTED = 2000
EPOCHS = 2
BATCH = 20
KEPT = ("val/", "spec/", "federated/", "time/")


@dataclass(frozen=True)
class Task:
    """One data set with its network and budget, the same for all methods.

    Attributes:
        title: Name for tables.
        source: Makes the datamodule; 4 % of its training set are held out for tuning.
        channels: Of its images.
        image_size: Their height and width.
        train_size: Training examples of all clients.
        rounds: Communication rounds.
        clients: Their number; a quarter of them take part in a round.
        rate: Local learning rate.
    """

    title: str
    source: Callable[[], ImageDataModule]
    channels: int
    image_size: int
    train_size: int = 2000
    rounds: int = 25
    clients: int = 20
    rate: float = 0.05

    def network(self) -> nn.Module:
        """Two strided convolutions of 8 and 16 channels and a linear layer: about ten thousand weights."""
        flat = 16 * (self.image_size // 4) ** 2
        return nn.Sequential(
            nn.Conv2d(self.channels, 8, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(flat, 10),
        )  # fmt: skip


TASKS = {
    "fashion_mnist": Task(
        "Fashion-MNIST", partial(FashionMNISTDataModule, val_fraction=0.04, value_range=(-1.0, 1.0)), 1, 28, rate=0.1
    ),
    "cifar10": Task("CIFAR-10", partial(HubImageDataModule, val_fraction=0.04, value_range=(-1.0, 1.0)), 3, 32),
}

METHODS: dict[str, Callable[[], Strategy]] = {
    "local only": LocalOnly,
    "FedAvg, fine-tuned": lambda: FedAvg(fine_tune_epochs=EPOCHS),
    "FedProx 0.1, fine-tuned": lambda: FedProx(0.1, fine_tune_epochs=EPOCHS),
    "FedRep": FedRep,
    "FedRoD": FedRoD,
    "Ditto 0.03": lambda: Ditto(0.03),
    "spectral, both 0": lambda: SpectralCoDistillation(0.0, 0.0),
    "spectral 0.3 / 0.4": SpectralCoDistillation,
    "spectral 0.3 / 0.4, teacher's norm": lambda: SpectralCoDistillation(weight_scale="teacher_norm"),
    "spectral 0.3 / 0.4 and prox 0.03": lambda: SpectralCoDistillation(prox_weight=0.03),
}

CANDIDATES: dict[str, Callable[[], Strategy]] = METHODS | {
    "FedProx 0.01, fine-tuned": lambda: FedProx(0.01, fine_tune_epochs=EPOCHS),
    "Ditto 0.1": lambda: Ditto(0.1),
    "Ditto 1": lambda: Ditto(1.0),
    "spectral 30 / 40": lambda: SpectralCoDistillation(30.0, 40.0),
    "spectral 3 / 4": lambda: SpectralCoDistillation(3.0, 4.0),
    "spectral 0 / 4": lambda: SpectralCoDistillation(0.0, 4.0),
    "spectral 0 / 0.4, teacher's norm": lambda: SpectralCoDistillation(0.0, 0.4, weight_scale="teacher_norm"),
}


class StackedTraining(VectorizedBackend):
    """Trains the clients stacked, and evaluates one after the other, which is the faster of both here."""

    def predict(
        self, network: nn.Module, layout: ModelLayout, models: Models, inputs: Tensor, forward: Mapping[str, Any]
    ) -> Tensor:
        """See `LocalBackend.predict`."""
        return LoopBackend().predict(network, layout, models, inputs, forward)


@cache
def read(name: str) -> ImageDataModule:
    """The data set, read once in a process; tested are its first 2,000 test images."""
    source = TASKS[name].source()
    source.setup()
    whole = source.test_set
    assert whole is not None
    source.test_set = ImageDataset(whole.images[:TESTED], whole.labels[:TESTED], 255, source.value_range)
    return source


def clients(name: str, p: float, alpha: float, seed: int, tuning: bool = False) -> FederatedDataModule:
    """The data set dealt out: each client has a class with probability `p`, at least 10 examples each."""
    task = TASKS[name]
    return FederatedDataModule(
        read(name), task.clients, BernoulliDirichletPartition(p, alpha, min_samples=10), partition_seed=seed,
        train_size=task.train_size, validate_on="held_out" if tuning else "test",
    )  # fmt: skip


def train(
    name: str,
    p: float,
    alpha: float,
    strategy: Strategy,
    seed: int,
    rounds: int | None = None,
    rate: float | None = None,
    tuning: bool = False,
) -> dict[str, float]:
    """Figures after the last round: a quarter of the clients in a round, 2 epochs a stage, batches of 20."""
    task = TASKS[name]
    rounds = task.rounds if rounds is None else rounds
    torch.manual_seed(seed)
    module = FederatedModule(
        task.network(), 10, strategy, participation=0.25, local_epochs=EPOCHS, batch_size=BATCH, seed=seed,
        seconds_per_step=0.01, backend=StackedTraining(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate or task.rate, momentum=0.5),
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=rounds, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        check_val_every_n_epoch=rounds,
    )  # fmt: skip
    trainer.fit(module, datamodule=clients(name, p, alpha, seed, tuning))
    return {
        key: float(f"{float(value):.6g}") for key, value in trainer.callback_metrics.items() if key.startswith(KEPT)
    }
