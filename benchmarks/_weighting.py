"""The digits tasks of the data-manipulation benchmark: label noise and class imbalance, learned through a Trainer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lit_methods import Classifier, DataWeighting
from lit_methods.backbones import MLP

EPOCHS, BATCH = 40, 50


@dataclass(frozen=True)
class Data:
    """Training, validation and test examples, and which training examples are suspect or rare."""

    inputs: Tensor
    labels: Tensor
    marked: Tensor
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    num_classes: int


def _split(labels: Tensor, counts: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions drawn by class, and the rest in random order."""
    order = torch.randperm(len(labels), generator=generator)
    drawn = torch.cat([order[labels[order] == c][:count] for c, count in enumerate(counts)])
    rest = order[~torch.isin(order, drawn)]
    return drawn, rest


def _digits() -> tuple[Tensor, Tensor]:
    inputs, labels = load_digits(return_X_y=True)
    return torch.tensor(inputs / 16.0, dtype=torch.float32), torch.tensor(labels)


def noise(seed: int, rate: float = 0.4) -> Data:
    """1,000 digits with labels redrawn uniformly at a rate; five clean digits per class for validation."""
    inputs, labels = _digits()
    generator = torch.Generator().manual_seed(seed)
    val, rest = _split(labels, [5] * 10, generator)
    train, test = rest[:1000], rest[1000:]
    spoiled = labels[train].clone()
    hit = torch.rand(1000, generator=generator) < rate
    spoiled[hit] = torch.randint(10, (int(hit.sum()),), generator=generator)
    found = (inputs[train], spoiled, spoiled != labels[train])
    return Data(*found, (inputs[val], labels[val]), (inputs[test], labels[test]), 10)


def imbalance(seed: int, minority: int = 8) -> Data:
    """Nines (few) against fours under pixel noise of 0.6; five of each for validation, 40 of each for the test."""
    inputs, labels = _digits()
    kept = (labels == 9) | (labels == 4)
    inputs, labels = inputs[kept], (labels[kept] == 4).long()
    generator = torch.Generator().manual_seed(seed)
    inputs = inputs + 0.6 * torch.randn(inputs.shape, generator=generator)
    held, rest = _split(labels, [45, 45], generator)
    val = torch.cat([held[:5], held[45:50]])
    test = held[~torch.isin(held, val)]
    train = torch.cat([rest[labels[rest] == 0][:minority], rest[labels[rest] == 1]])
    found = (inputs[train], labels[train], labels[train] == 0)
    return Data(*found, (inputs[val], labels[val]), (inputs[test], labels[test]), 2)


def run(
    data: Data, seed: int, rate: float, callback: DataWeighting | None, with_val: bool = False, epochs: int = EPOCHS
) -> dict[str, float]:
    """Trains an MLP 64-64-C and returns accuracies, weights of marked and other examples, AUC and seconds.

    Every method takes the same number of optimizer steps, `with_val` too, whose training set is a little larger.
    """
    inputs, labels = data.inputs, data.labels
    if with_val:
        inputs, labels = torch.cat([inputs, data.val[0]]), torch.cat([labels, data.val[1]])
    seed_everything(seed, verbose=False)
    module = Classifier(
        MLP(64, [64, 64], data.num_classes),
        data.num_classes,
        optimizer=lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9),
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=epochs * -(-len(data.inputs) // BATCH),
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[] if callback is None else [callback],
    )
    start = time.perf_counter()
    trainer.fit(module, DataLoader(TensorDataset(inputs, labels, torch.arange(len(labels))), BATCH, shuffle=True))
    figures = {"seconds": time.perf_counter() - start}
    for name, (x, y) in (("val", data.val), ("test", data.test)):
        figures[name] = 100 * (module.eval()(x).argmax(1) == y).float().mean().item()
    if callback is not None:
        weights = torch.nan_to_num(callback.weights(), nan=1.0)[: len(data.marked)]
        figures["marked"], figures["others"] = weights[data.marked].mean().item(), weights[~data.marked].mean().item()
        figures["auc"] = float(roc_auc_score((~data.marked).numpy(), weights.numpy()))
    return figures


def compare(
    make: Callable[[int], Data],
    methods: dict[str, Callable[[Data], DataWeighting] | None],
    rates: Sequence[float],
    seeds: int,
    epochs: int = EPOCHS,
) -> list[dict[str, Any]]:
    """Each method at the learning rate with the best validation accuracy over all seeds, then its test figures."""
    rows = []
    for name, method in methods.items():
        tried = []
        for rate in rates:
            found = []
            for seed in range(seeds):
                data = make(seed)
                callback = None if method is None else method(data)
                found.append(run(data, seed, rate, callback, name == "plain + validation data", epochs))
            tried.append((statistics.mean(f["val"] for f in found), rate, found))
        # validation data that were trained on choose nothing: that row has the rate of plain training
        plain_rate = next((row["rate"] for row in rows if row["method"] == "plain"), None)
        best = max(tried, key=lambda t: (t[0], -t[1]))
        if name == "plain + validation data":
            best = next(t for t in tried if t[1] == plain_rate)
        row: dict[str, Any] = {"method": name, "rate": best[1], "seeds": seeds}
        for key in ("test", "marked", "others", "auc", "seconds"):
            values = [f[key] for f in best[2] if key in f]
            row[key] = statistics.mean(values) if values else ""
        row["spread"] = statistics.stdev(f["test"] for f in best[2]) if seeds > 1 else 0.0
        row["all_rates"] = {rate: statistics.mean(f["test"] for f in found) for _, rate, found in tried}
        rows.append(row)
        print(f"  {name}: {row['test']:.1f} ± {row['spread']:.1f}, rates {row['all_rates']}", flush=True)
    return rows
