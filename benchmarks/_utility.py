"""Accuracy at equal epsilon: each mechanism at its own best learning rate, five fresh seeds, on the test set."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from opacus import PrivacyEngine
from torch import nn
from tqdm import tqdm

from lit_methods.callbacks import BandedSquareRootNoise
from lit_methods.classifier import Classifier
from lit_methods.differential_privacy import BandedInverseSquareRoot, BandedSquareRoot


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


Mechanism = Callable[[Task, float, float, int], Classifier]


def _module(task: Task, rate: float) -> Classifier:
    return Classifier(
        task.network(), 10, optimizer=lambda params: torch.optim.SGD(params, lr=rate, momentum=task.momentum)
    )


def _trainer(task: Task, *callbacks: Callback) -> Trainer:
    return Trainer(
        max_epochs=task.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )


def callback(**options: Any) -> Mechanism:
    """Our callback with these options; without any, no privacy."""

    def train(task: Task, epsilon: float, rate: float, seed: int) -> Classifier:
        module = _module(task, rate)
        private = [
            BandedSquareRootNoise(
                epsilon=epsilon, delta=1e-5, max_grad_norm=task.max_grad_norm, unsafe_seed=seed, **options
            )
            for _ in range(bool(options))
        ]
        _trainer(task, *private).fit(module, task.data())
        return module

    return train


def opacus_dp_sgd(task: Task, epsilon: float, rate: float, seed: int) -> Classifier:
    """Opacus as its users run it: Poisson sampling, independent noise, its own PRV accountant."""
    data = task.data()
    data.setup("fit")
    module = _module(task, rate)
    network, optimizer, loader = PrivacyEngine().make_private_with_epsilon(
        module=module.network,
        optimizer=torch.optim.SGD(module.network.parameters(), lr=rate, momentum=task.momentum),
        data_loader=data.train_dataloader(),
        target_epsilon=epsilon,
        target_delta=1e-5,
        epochs=task.epochs,
        max_grad_norm=task.max_grad_norm,
        noise_generator=torch.Generator().manual_seed(seed),
    )
    for _ in range(task.epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            if len(labels):
                nn.functional.cross_entropy(network(images), labels).backward()
                optimizer.step()
    network.remove_hooks()
    return module


def accuracy(task: Task, mechanism: Mechanism, epsilon: float, rate: float, seed: int, part: str) -> float:
    """Validation or test accuracy of one run."""
    seed_everything(seed, verbose=False)
    module = mechanism(task, epsilon, rate, seed)
    trainer, data = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False), task.data()
    evaluate = trainer.validate if part == "val" else trainer.test
    return float(evaluate(module, datamodule=data, verbose=False)[0][f"{part}/acc"])


MECHANISMS: dict[str, Mechanism] = {
    "no privacy": callback(),
    "identity, fixed order": callback(bandwidth=1),
    "BSR, fixed order": callback(factorization=BandedSquareRoot()),
    "BISR p = 4, fixed order": callback(factorization=BandedInverseSquareRoot(4)),
    "Opacus DP-SGD, Poisson": opacus_dp_sgd,
}


def compare(
    task: Task, epsilons: tuple[float, ...], seeds: int, mechanisms: Mapping[str, Mechanism] = MECHANISMS
) -> list[dict[str, Any]]:
    """Chooses each mechanism's learning rate on the validation set with two seeds, then tests it with fresh seeds."""
    choices = task.rates if len(task.rates) > 1 else ()
    runs = len(epsilons) * len(mechanisms) * (2 * len(choices) + seeds)
    rows = []
    with tqdm(total=runs, desc=task.name) as bar:

        def run(mechanism: Mechanism, epsilon: float, rate: float, seed: int, part: str) -> float:
            result = accuracy(task, mechanism, epsilon, rate, seed, part)
            bar.update()
            return result

        for epsilon in epsilons:
            for name, mechanism in mechanisms.items():
                scores = {r: sum(run(mechanism, epsilon, r, 100 + s, "val") for s in (0, 1)) for r in choices}
                rate = max(scores, key=scores.__getitem__, default=task.rates[0])
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
