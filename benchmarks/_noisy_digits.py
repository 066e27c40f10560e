"""A federated task on digits that is hard enough to tell methods apart, and every method on it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_methods.backbones import MLP
from lit_methods.datamodules import BernoulliDirichletPartition, DigitsDataModule, FederatedDataModule
from lit_methods.datamodules.images import Split
from lit_methods.federated import (
    Ditto,
    FedAvg,
    FedProx,
    FedRep,
    FedRoD,
    LocalOnly,
    SpectralCoDistillation,
    Strategy,
    VectorizedBackend,
)
from lit_methods.federated.module import FederatedModule

_RANGE = (-1.5, 2.5)

METHODS: dict[str, Callable[[], Strategy]] = {
    "local only": LocalOnly,
    "FedAvg, fine-tuned": lambda: FedAvg(fine_tune_epochs=5),
    "FedProx 0.1, fine-tuned": lambda: FedProx(0.1, fine_tune_epochs=5),
    "FedRep": FedRep,
    "FedRoD": FedRoD,
    "Ditto 0.1": lambda: Ditto(0.1),
    "Ditto 1": lambda: Ditto(1.0),
    "spectral, both 0": lambda: SpectralCoDistillation(0.0, 0.0),
    "spectral 0.3 / 0.4": SpectralCoDistillation,
    "spectral 0 / 0.4": lambda: SpectralCoDistillation(0.0, 0.4),
    "spectral 0.3 / 0": lambda: SpectralCoDistillation(0.3, 0.0),
    "spectral 3 / 4": lambda: SpectralCoDistillation(3.0, 4.0),
    "spectral 30 / 40": lambda: SpectralCoDistillation(30.0, 40.0),
    "spectral 0 / 4": lambda: SpectralCoDistillation(0.0, 4.0),
    "spectral 0 / 4, each layer 2-D": lambda: SpectralCoDistillation(0.0, 4.0, layout="per_layer_2d"),
    "spectral 0.3 / 0.4, ratio 0.1": lambda: SpectralCoDistillation(ratio=0.1),
    "spectral 0.3 / 0.4, ratio 1": lambda: SpectralCoDistillation(ratio=1.0),
    "spectral 0.3 / 0.4, received teacher": lambda: SpectralCoDistillation(teacher="received"),
    "spectral 0.3 / 0.4 from the generic model": lambda: SpectralCoDistillation(personal_start="generic"),
    "spectral 0.3 / 0.4 and prox 0.1": lambda: SpectralCoDistillation(prox_weight=0.1),
}


class NoisyDigits(DigitsDataModule):
    """Digits with Gaussian noise of standard deviation 0.35 on pixels in [0, 1]; two thirds are the test set."""

    pixel_maximum = 255
    test_fraction = 1197 / 1797

    def __init__(self, noise: float = 0.35, batch_size: int = 128, val_fraction: float = 0.0) -> None:
        super().__init__(batch_size=batch_size, val_fraction=val_fraction, value_range=_RANGE)
        self.noise = noise

    def read(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Digits in 8 bits that span -1.5 to 2.5, the noise drawn once."""
        found = super().read(split)
        if found is None:
            return None
        pixels, labels = found
        generator = torch.Generator().manual_seed(0 if split == "train" else 1)
        noisy = pixels / 16 + self.noise * torch.randn(pixels.shape, generator=generator)
        scaled = (noisy - _RANGE[0]) / (_RANGE[1] - _RANGE[0]) * 255
        return scaled.round().clamp(0, 255).to(torch.uint8), labels


def task(p: float, seed: int) -> FederatedDataModule:
    """300 training examples, 10 clients, a client has a class with probability `p`, alpha = 1."""
    partition = BernoulliDirichletPartition(p, 1.0)
    return FederatedDataModule(NoisyDigits(), 10, partition, partition_seed=seed, train_size=300)


def train(strategy: Strategy, p: float, seed: int, rounds: int = 40, **options: Any) -> dict[str, float]:
    """Final figures of a run: half of the clients in a round, 5 epochs of batches of 10, SGD 0.05 / 0.5."""
    torch.manual_seed(seed)
    network = MLP(64, [64, 64], 10)
    arguments = {"participation": 0.5, "backend": VectorizedBackend(), "seed": seed} | options
    module = FederatedModule(network, 10, strategy, **arguments)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=rounds,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=rounds,
    )
    trainer.fit(module, datamodule=task(p, seed))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def compare(p: float, seeds: Sequence[int], rounds: int, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Mean and spread of each method's final figures over the seeds."""
    rows = []
    for name in METHODS if names is None else names:
        runs = [train(METHODS[name](), p, seed, rounds) for seed in seeds]
        rows.append({"p": p, "method": name, "seeds": len(runs)} | summary(runs))
    return rows


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each figure that all runs have."""
    names = set(runs[0]).intersection(*runs[1:])
    return {
        name: (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for name in sorted(names)
        for values in ([run[name] for run in runs],)
    }
