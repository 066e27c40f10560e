"""Accuracy at equal epsilon: each mechanism at its own best learning rate, five fresh seeds, on the test set."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import nn
from tqdm import tqdm

from lit_methods.callbacks import BandedSquareRootNoise
from lit_methods.classifier import Classifier


@dataclass(frozen=True)
class Task:
    """One data set with its network and budget.

    Attributes:
        name: For the table.
        data: Makes the datamodule.
        network: Makes the network.
        epochs: Length of each run.
        rates: Learning rates to choose from by validation accuracy.
        max_grad_norm: Clip norm.
        momentum: Of SGD.
    """

    name: str
    data: Callable[[], LightningDataModule]
    network: Callable[[], nn.Module]
    epochs: int
    rates: tuple[float, ...]
    max_grad_norm: float
    momentum: float = 0.9


Mechanism = Callable[[float, float, int], list[BandedSquareRootNoise]]


def bsr(bandwidth: int | None = None) -> Mechanism:
    """The callback at `(epsilon, max_grad_norm, seed)`; bandwidth 1 is independent noise."""
    return lambda epsilon, norm, seed: [
        BandedSquareRootNoise(epsilon=epsilon, delta=1e-5, max_grad_norm=norm, bandwidth=bandwidth, unsafe_seed=seed)
    ]


MECHANISMS: dict[str, Mechanism] = {
    "no privacy": lambda epsilon, norm, seed: [],
    "identity noise, fixed order": bsr(1),
    "BSR, fixed order": bsr(),
}


def accuracy(task: Task, mechanism: Mechanism, epsilon: float, rate: float, seed: int, part: str) -> float:
    """Validation or test accuracy of one run."""
    seed_everything(seed, verbose=False)
    data = task.data()
    module = Classifier(
        task.network(), 10, optimizer=lambda params: torch.optim.SGD(params, lr=rate, momentum=task.momentum)
    )
    trainer = Trainer(
        max_epochs=task.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0 if part == "test" else 1.0,
        check_val_every_n_epoch=task.epochs,
        callbacks=mechanism(epsilon, task.max_grad_norm, seed),
    )
    trainer.fit(module, datamodule=data)
    result = trainer.callback_metrics if part == "val" else trainer.test(module, datamodule=data, verbose=False)[0]
    return float(result[f"{part}/acc"])


def compare(
    task: Task, epsilons: tuple[float, ...], seeds: int, mechanisms: Mapping[str, Mechanism] = MECHANISMS
) -> list[dict[str, Any]]:
    """Chooses each mechanism's learning rate on the validation set with two seeds, then tests it with fresh seeds."""
    runs = len(epsilons) * len(mechanisms) * (2 * len(task.rates) + seeds)
    rows = []
    with tqdm(total=runs, desc=task.name) as bar:

        def run(mechanism: Mechanism, epsilon: float, rate: float, seed: int, part: str) -> float:
            bar.update()
            return accuracy(task, mechanism, epsilon, rate, seed, part)

        for epsilon in epsilons:
            for name, mechanism in mechanisms.items():
                scores = {r: sum(run(mechanism, epsilon, r, 100 + s, "val") for s in (0, 1)) for r in task.rates}
                rate = max(scores, key=scores.__getitem__)
                tested = [run(mechanism, epsilon, rate, seed, "test") for seed in range(seeds)]
                rows.append(
                    {
                        "data": task.name,
                        "epsilon": epsilon,
                        "mechanism": name,
                        "rate": rate,
                        "mean": statistics.mean(tested),
                        "spread": statistics.stdev(tested) if seeds > 1 else 0.0,
                        "seeds": seeds,
                    }
                )
    return rows
