"""Federated rounds: their price by backend, that of the spectral terms, memory, the wait-free curve, and accuracy.

`python -m benchmarks.federated [--quick] [--json FILE] [--plots FOLDER] [--only PART]`
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import _spill
from benchmarks._batched_convolution import by_matrices, stacked_step
from benchmarks._federated_real import real_data
from benchmarks._flower import flower
from benchmarks._harness import medians, run, table
from benchmarks._noisy_digits import METHODS, compare
from benchmarks._rounds import Client, engine_round, networks, trainer_round
from lit_methods.federated import (
    AutomaticBackend,
    Ditto,
    LocalBackend,
    LoopBackend,
    SpectralCoDistillation,
    Strategy,
    VectorizedBackend,
)
from lit_methods.federated.clock import ProtocolClock, Work

Figures = tuple[dict[str, float], list[dict[str, Any]]]


def rounds(quick: bool) -> Figures:
    """Seconds of a round of two stages without terms, by who trains."""
    rows, headlines = [], {}
    epochs, repeats = (1, 3) if quick else (5, 3)
    sides = ("vectorized", "automatic", "trainer")
    for name, (network, shape) in networks().items():
        for total, part in ((20, 1.0),) if quick else ((20, 0.1), (20, 1.0), (100, 0.1), (100, 1.0)):
            clients = [Client(20 + 2 * (i % 10), shape) for i in range(round(part * total))]
            plain = SpectralCoDistillation(0.0, 0.0)
            run_by: dict[str, Callable[[], Any]] = {
                "loop": engine_round(plain, LoopBackend(), network, clients, epochs),
                "vectorized": engine_round(plain, VectorizedBackend(), network, clients, epochs),
                "automatic": engine_round(plain, AutomaticBackend(), network, clients, epochs),
                "trainer": partial(trainer_round, network, clients, epochs),
            }
            seconds = medians(run_by, repeats)
            row: dict[str, Any] = {"network": name, "clients": total, "participation": part}
            row["loop_ms"] = 1e3 * seconds["loop"]
            row |= {side: seconds["loop"] / seconds[side] if side in seconds else "" for side in sides}
            rows.append(row)
            if (total, part) == (20, 1.0):
                headlines |= _headlines(name, seconds)
    columns = ["network", "clients", "participation", "loop, ms", *sides]
    table("(a) rounds per second, the loop = 1", columns, [list(row.values()) for row in rows])
    return headlines, rows


def _headlines(network: str, seconds: dict[str, float]) -> dict[str, float]:
    if network == "CNN":
        return {"auto_vs_loop_cnn": seconds["loop"] / seconds["automatic"]}
    return {
        "vectorized_vs_trainer_per_client": seconds["trainer"] / seconds["vectorized"],
        "vectorized_vs_loop": seconds["loop"] / seconds["vectorized"],
    }


def spectral_terms(quick: bool) -> Figures:
    """Seconds of a round with both spectral terms over one of Ditto, by the default backend and by the loop."""
    rows, headlines = [], {}
    epochs, repeats = (2, 3) if quick else (5, 9)
    strategies: dict[str, Strategy] = {
        "Ditto": Ditto(),
        "spectral": SpectralCoDistillation(),
        "spectral, each layer 1-D": SpectralCoDistillation(layout="per_layer_1d"),
        "spectral, fast lengths": SpectralCoDistillation(smooth=True),
        "spectral, every 4 steps": SpectralCoDistillation(every_k_steps=4),
    }
    backends: dict[str, tuple[type[LocalBackend], int]] = {"automatic": (AutomaticBackend, 20)}
    if not quick:
        backends["loop"] = (LoopBackend, 4)
    for name, (network, shape) in networks().items():
        for by, (backend, count) in backends.items():
            clients = [Client(30, shape) for _ in range(count)]
            sides = {s: engine_round(each, backend(), network, clients, epochs) for s, each in strategies.items()}
            seconds = medians(sides, repeats)
            for side, value in seconds.items():
                rows.append({"network": name, "backend": by, "side": side, "ratio": value / seconds["Ditto"]})
            if (name, by) == ("CNN", "automatic"):
                headlines["spectral_overhead"] = seconds["spectral"] / seconds["Ditto"]
    columns = ["network", "backend", "side", "time"]
    table("(b) a round, Ditto = 1", columns, [list(row.values()) for row in rows])
    return headlines, rows


def convolution(quick: bool) -> Figures:
    """Seconds of a step of 20 stacked CNNs by torch's grouped convolutions, and by products of matrices."""
    network, shape = networks()["CNN"]
    grouped, matrices = stacked_step(network, shape, 20), stacked_step(by_matrices(network), shape, 20)
    if not torch.allclose(grouped(), matrices(), rtol=1e-4, atol=1e-6):
        raise RuntimeError("The two convolutions disagree.")
    seconds = medians({"grouped": grouped, "matrices": matrices}, 5 if quick else 21)
    rows = [{"convolutions": name, "time": value / seconds["grouped"]} for name, value in seconds.items()]
    table("(c) a step of 20 CNNs, grouped convolutions = 1", ["convolutions", "time"], [list(r.values()) for r in rows])
    return {}, rows


def spill(quick: bool) -> Figures:
    """Memory of a thousand clients' personal models, in memory and on disk."""
    rows = _spill.compare(4 if quick else 20)
    columns = ["personal models", "clients that have one", "their size, MiB", "training, MiB", "saving, MiB"]
    table("(d) memory of a run with 1,000 clients", columns, [list(row.values()) for row in rows])
    return {}, rows


def wait_free(quick: bool) -> Figures:
    """Speed-up of the wait-free protocol by communication over personal training, from the simulated clock."""
    rows = []
    for ratio in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 16.0):
        row: dict[str, Any] = {"ratio": ratio}
        for generic in (0.0, 0.5, 1.0):
            clock = ProtocolClock()
            for _ in range(200):
                clock.advance([Work(i, generic, 1.0, ratio / 2, ratio / 2) for i in range(5)], 0.0)
            row[f"g = {generic}"] = clock.sequential / clock.wait_free
        rows.append(row)
    title = "(e) simulated speed-up of wait-free over compute-and-wait, p = 1, by c / p"
    table(title, ["c / p", "g = 0", "g = 0.5", "g = 1"], [list(row.values()) for row in rows])
    return {}, rows


def draw_wait_free(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the speed-ups over c / p."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name in [name for name in rows[0] if name != "ratio"]:
        axes.plot([row["ratio"] for row in rows], [row[name] for row in rows], marker="o", label=name)
    axes.set_xscale("symlog", linthresh=0.25, base=2)
    axes.set(xlabel="communication c over personal training p", ylabel="speed-up of wait-free", ylim=(0.95, 2.05))
    axes.legend(title="generic training, p = 1")
    figure.savefig(path, dpi=120)


def accuracy(quick: bool) -> Figures:
    """Final accuracies of every method on noisy digits."""
    rows: list[dict[str, Any]] = []
    names = ["local only", "Ditto 0.1", "spectral 0.3 / 0.4"] if quick else list(METHODS)
    for p in (0.5,) if quick else (0.3, 0.5, 1.0):
        rows += compare(p, range(1 if quick else 3), 5 if quick else 40, names)
    figures = ("val/generic_acc", "val/generic_acc_local", "val/personal_acc", "spec/personal_kl")
    table(
        "(f) noisy digits, mean ± standard deviation over seeds",
        ["p", "method", "generic, global", "generic, local", "personal", "divergence"],
        [[row["p"], row["method"], *(_mean_and_spread(row.get(name)) for name in figures)] for row in rows],
    )
    return {}, rows


def _mean_and_spread(value: tuple[float, float] | None) -> str:
    return "" if value is None else f"{value[0]:.3f}" + (f" ± {value[1]:.3f}" if value[1] else "")


if __name__ == "__main__":
    parts = (rounds, flower, spectral_terms, convolution, spill, wait_free, accuracy, real_data)
    run(__doc__ or "", *parts, plots={"wait_free": draw_wait_free})
