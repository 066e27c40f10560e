"""Accuracy at equal epsilon: each mechanism at its own best learning rate, fresh seeds, on the test set."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from opacus import PrivacyEngine
from torch import nn
from tqdm import tqdm

from lit_methods.callbacks import BandedSquareRootNoise
from lit_methods.classifier import Classifier
from lit_methods.datamodules.dataset import ImageDataset
from lit_methods.datamodules.images import ImageDataModule
from lit_methods.differential_privacy import (
    BandedInverseSquareRoot,
    BandedSquareRoot,
    CyclicPoisson,
    Workload,
    cycle_length_errors,
)


@dataclass(frozen=True, eq=False)
class Task:
    """One data set with its network and budget.

    Attributes:
        name: For the table.
        data: The datamodule, the same for all runs.
        network: Makes the network.
        epochs: Length of each run.
        rates: Learning rates to choose from by validation accuracy.
        max_grad_norm: Clip norm.
        rate_seeds: Seeds by which the rate is chosen.
        momentum: Of SGD.
        examples: Training images that are used, from the first on; all of them if None.
    """

    name: str
    data: ImageDataModule
    network: Callable[[], nn.Module]
    epochs: int
    rates: tuple[float, ...]
    max_grad_norm: float
    rate_seeds: int = 2
    momentum: float = 0.9
    examples: int | None = None

    def __post_init__(self) -> None:
        """Reads the data once."""
        self.data.setup()
        whole = self.data.train_set
        if whole is not None and self.examples is not None:
            images, labels = whole.images[: self.examples], whole.labels[: self.examples]
            self.data.train_set = ImageDataset(images, labels, self.data.pixel_maximum, self.data.value_range)

    @property
    def size(self) -> int:
        """Number of training images."""
        return len(self.data.train_set or ())

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return self.epochs * math.ceil(self.size / self.data.batch_size)


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
        _trainer(task, *private).fit(module, task.data)
        return module

    return train


def cyclic_poisson(task: Task, epsilon: float, rate: float, seed: int) -> Classifier:
    """Our callback under cyclic Poisson sampling, with the cycle that leaves the least error in the models."""
    length = best_cycle(task, epsilon)
    return callback(sampling=CyclicPoisson(length, unsafe_seed=seed))(task, epsilon, rate, seed)


@cache
def best_cycle(task: Task, epsilon: float) -> int:
    """The number of groups, out of powers of two, that leaves the least error in the models."""
    errors = cycle_length_errors(
        Workload.sgd(momentum=task.momentum),
        num_examples=task.size,
        batch_size=task.data.batch_size,
        steps=task.steps,
        epsilon=epsilon,
        delta=1e-5,
    )
    return min(errors, key=errors.__getitem__)


def opacus_dp_sgd(task: Task, epsilon: float, rate: float, seed: int) -> Classifier:
    """Opacus as its users run it: Poisson sampling, independent noise, its own PRV accountant."""
    module = _module(task, rate)
    network, optimizer, loader = PrivacyEngine().make_private_with_epsilon(
        module=module.network,
        optimizer=torch.optim.SGD(module.network.parameters(), lr=rate, momentum=task.momentum),
        data_loader=task.data.train_dataloader(),
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
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False)
    evaluate = trainer.validate if part == "val" else trainer.test
    return float(evaluate(module, datamodule=task.data, verbose=False)[0][f"{part}/acc"])


NO_PRIVACY = "no privacy"
MECHANISMS: dict[str, Mechanism] = {
    NO_PRIVACY: callback(),
    "identity, fixed order": callback(bandwidth=1),
    "BSR, fixed order": callback(factorization=BandedSquareRoot()),
    "BSR, cyclic Poisson": cyclic_poisson,
    "BISR p = 4, fixed order": callback(factorization=BandedInverseSquareRoot(4)),
    "Opacus DP-SGD, Poisson": opacus_dp_sgd,
}


def compare(
    task: Task, epsilons: tuple[float, ...], seeds: int, mechanisms: Mapping[str, Mechanism] = MECHANISMS
) -> list[dict[str, Any]]:
    """Chooses each mechanism's learning rate on the validation set, then tests it with fresh seeds."""
    choices = task.rates if len(task.rates) > 1 else ()
    pairs = [
        (None, NO_PRIVACY),
        *((epsilon, name) for epsilon in epsilons for name in mechanisms if name != NO_PRIVACY),
    ]
    rows = []
    with tqdm(total=len(pairs) * (task.rate_seeds * len(choices) + seeds), desc=task.name) as bar:

        def run(mechanism: Mechanism, epsilon: float, rate: float, seed: int, part: str) -> float:
            result = accuracy(task, mechanism, epsilon, rate, seed, part)
            bar.update()
            return result

        for epsilon, name in pairs:
            mechanism, budget = mechanisms[name], epsilon or math.inf
            scores = {
                rate: sum(run(mechanism, budget, rate, 100 + seed, "val") for seed in range(task.rate_seeds))
                for rate in choices
            }
            rate = max(scores, key=scores.__getitem__, default=task.rates[0])
            tested = [run(mechanism, budget, rate, seed, "test") for seed in range(seeds)]
            cyclic = mechanism is cyclic_poisson and epsilon is not None
            rows.append(
                {
                    "data": task.name,
                    "epsilon": epsilon,
                    "mechanism": f"{name} g = {best_cycle(task, epsilon)}" if cyclic else name,
                    "rate": rate,
                    "mean": statistics.mean(tested),
                    "spread": statistics.stdev(tested) if seeds > 1 else 0.0,
                    "seeds": seeds,
                }
            )
            tqdm.write(str(rows[-1]))
    return rows
