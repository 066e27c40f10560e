"""Banded square root noise: the price of a step, and accuracy at equal epsilon.

`python -m benchmarks.differential_privacy [--quick] [--json FILE] [--plots FOLDER] [--only PART]`
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from benchmarks._harness import medians, run, table
from benchmarks._utility import Task, compare, draw
from lit_methods.backbones import MLP, SmallCNN
from lit_methods.datamodules import DigitsDataModule, FashionMNISTDataModule, HubImageDataModule
from lit_methods.datamodules.errors import DatasetNotFoundError
from lit_methods.differential_privacy import (
    BandedSquareRoot,
    CorrelatedNoise,
    CorrelatedNoiseOptimizer,
    Factorization,
    OptimalBandedToeplitz,
    Participation,
    Workload,
)
from lit_methods.differential_privacy.functional import banded_square_root_coefficients


class AxpyLoop:
    """The recurrence as the paper writes it: one scaled addition per past vector."""

    def __init__(self, coefficients: Tensor, dimension: int) -> None:
        self.coefficients = coefficients.tolist()
        self.past: list[Tensor] = [torch.zeros(dimension) for _ in self.coefficients[1:]]
        self.generator = torch.Generator()

    def next(self) -> Tensor:
        """The next vector."""
        fresh = torch.empty_like(self.past[0]).normal_(generator=self.generator)
        for coefficient, vector in zip(self.coefficients[1:], self.past, strict=True):
            fresh.sub_(vector, alpha=coefficient)
        self.past = [fresh, *self.past[:-1]]
        return fresh


class BufferShift:
    """One buffer that is concatenated anew in each step, as in the published repository."""

    def __init__(self, coefficients: Tensor, dimension: int) -> None:
        self.weights = coefficients[1:].float()
        self.buffer = torch.zeros(len(self.weights), dimension)

    def next(self) -> Tensor:
        """The next vector."""
        fresh = torch.randn(self.buffer.shape[1]) - self.weights @ self.buffer
        self.buffer = torch.cat([fresh[None], self.buffer[:-1]])
        return fresh


def setup(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Error and set-up time of BSR over the numerically optimal band of the same width."""
    rows = []
    for steps in (1_000,) if quick else (1_000, 10_000, 100_000):
        schedule, workload = Participation(steps, 10, steps // 10), Workload.sgd(0.9, 0.9999)
        width = min(1024, schedule.separation)
        bsr_time = medians({"bsr": partial(_sensitive, BandedSquareRoot(width), workload, schedule)}, 5)["bsr"]
        optimum_time, optimum = _timed(partial(OptimalBandedToeplitz(width).strategy, workload, schedule, 1))
        error = BandedSquareRoot(width).strategy(workload, schedule, 1).expected_error() / optimum.expected_error()
        rows.append(
            {"steps": steps, "bandwidth": width, "error": error, "time": bsr_time / optimum_time, "ms": 1e3 * bsr_time}
        )
    million = Participation(10**6, 1000, 1000)
    alone = medians({"bsr": partial(_sensitive, BandedSquareRoot(1024), Workload.sgd(0.9, 0.9999), million)}, 5)
    rows.append({"steps": 10**6, "bandwidth": 1024, "error": "", "time": "", "ms": 1e3 * alone["bsr"]})
    table(
        "(a) set-up, k = 10 (k = b = 1,000 in the last row), momentum 0.9, decay 0.9999; numerical optimum = 1",
        ["n", "p", "error", "set-up time", "milliseconds"],
        [[row[key] for key in ("steps", "bandwidth", "error", "time", "ms")] for row in rows],
    )
    compared = rows[:-1] + dense_optimum(quick)
    if any("momentum" in row for row in compared):
        table(
            "(a) BSR over the optimal dense factorization (jax-privacy, 300 L-BFGS steps), k = 4",
            ["n", "momentum", "error", "set-up time"],
            [[row[key] for key in ("steps", "momentum", "error", "time")] for row in compared if "momentum" in row],
        )
    headlines = {
        "setup_error_vs_optimum": max(row["error"] for row in compared),
        "setup_time_vs_optimum": statistics.median(row["time"] for row in compared),
    }
    return headlines, [*rows, *compared]


def dense_optimum(quick: bool) -> list[dict[str, Any]]:
    """BSR over jax-privacy's dense optimum, the state of the art in error; nothing where it is not installed."""
    if importlib.util.find_spec("jax_privacy") is None:
        print("\njax-privacy is not installed: no dense optimum to compare with")
        return []
    import jax
    from jax_privacy.matrix_factorization import dense, sensitivity

    jax.config.update("jax_enable_x64", True)
    rows = []
    for steps, momentum in ((64, 0.9),) if quick else ((64, 0.0), (64, 0.9), (128, 0.0), (128, 0.9), (256, 0.9)):
        schedule, workload = Participation(steps, 4, steps // 4), Workload.sgd(momentum)
        column = workload.first_column(steps)
        matrix = sum(
            torch.diag(torch.full((steps - j,), float(a), dtype=torch.float64), -j) for j, a in enumerate(column)
        )
        optimize = partial(dense.optimize, steps, epochs=4, A=jax.numpy.asarray(matrix), max_optimizer_steps=300)
        dense_time, encoder = _timed(lambda optimize=optimize: optimize().block_until_ready())
        bsr_time = medians({"bsr": partial(_sensitive, BandedSquareRoot(), workload, schedule)}, 5)["bsr"]
        decoder = torch.linalg.solve_triangular(
            torch.tensor(encoder.tolist()).double(), matrix, upper=False, left=False
        )
        best = float(decoder.norm()) * float(sensitivity.fixed_epoch_sensitivity(encoder, 4)) / steps**0.5
        ours = BandedSquareRoot().strategy(workload, schedule, 1).expected_error()
        rows.append({"steps": steps, "momentum": momentum, "error": ours / best, "time": bsr_time / dense_time})
    return rows


def _timed(side: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and what it returned: for sides of seconds, whose set-up is the point."""
    start = time.perf_counter()
    result = side()
    return time.perf_counter() - start, result


def _sensitive(rule: Factorization, workload: Workload, schedule: Participation) -> float:
    return rule.strategy(workload, schedule, 1).sensitivity()


def noise_step(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Seconds of one noise vector of 4 million entries over those of drawing it independently."""
    dimension = 1_000_000 if quick else 4_000_000
    repeats, rows, headlines = 3 if quick else 5, [], {}
    iid = torch.empty(dimension)
    for bandwidth in (4, 16, 64) if quick else (4, 16, 64, 256):
        coefficients = banded_square_root_coefficients(bandwidth, momentum=0.9)
        ours = CorrelatedNoise(coefficients, dimension, steps=10**9)
        calls = {"iid": 4, "axpy": 1, "shift": 1, "ours": ours.block_size}
        sides: dict[str, Callable[[], Any]] = {
            "iid": partial(iid.normal_, generator=torch.Generator()),
            "axpy": AxpyLoop(coefficients, dimension).next,
            "shift": BufferShift(coefficients, dimension).next,
            "ours": ours.next,
        }
        seconds = medians({name: partial(_repeat, side, calls[name]) for name, side in sides.items()}, repeats)
        seconds = {name: value / calls[name] for name, value in seconds.items()}
        ratios = {name: value / seconds["iid"] for name, value in seconds.items()}
        memory = ours.state_dict()["rows"].numel() / dimension
        rows.append({"bandwidth": bandwidth, **ratios, "vectors": memory, "iid_ms": 1e3 * seconds["iid"]})
        if bandwidth == 64:
            headlines["noise_step_p64_vs_iid"] = ratios["ours"]
    table(
        f"(b) one noise vector, d = {dimension:,}, iid draw = 1",
        ["p", "axpy loop", "buffer shift", "ours", "vectors kept"],
        [[row[key] for key in ("bandwidth", "axpy", "shift", "ours", "vectors")] for row in rows],
    )
    return headlines, rows


def _repeat(side: Callable[[], Any], calls: int) -> None:
    for _ in range(calls):
        side()


def training_step(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Seconds of a whole private step on a small CNN, over Opacus' DP-SGD."""
    batch, repeats = 64 if quick else 256, 6 if quick else 20
    images, labels = torch.rand(batch, 3, 32, 32), torch.randint(10, (batch,))
    sides: dict[str, Callable[[], Any]] = {}
    for name, bandwidth in (("opacus", 0), ("ours p=1", 1), ("ours p=16", 16), ("ours p=64", 64)):
        network = SmallCNN(3, 10, widths=(32, 64), image_size=32)
        GradSampleHooks(network)
        inner = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        options: dict[str, Any] = {"max_grad_norm": 1.0, "expected_batch_size": batch}
        size = sum(p.numel() for p in network.parameters())
        optimizer: DPOptimizer
        if bandwidth:
            noise = CorrelatedNoise(banded_square_root_coefficients(bandwidth, 0.9), size, steps=10**9)
            optimizer = CorrelatedNoiseOptimizer(inner, noise=noise, noise_std=1.0, **options)
        else:
            optimizer = DPOptimizer(inner, noise_multiplier=1.0, **options)
        sides[name] = partial(_train_step, network, optimizer, images, labels)
    seconds = medians(sides, repeats, warm_up=2)
    rows = [{"side": name, "ratio": value / seconds["opacus"], "ms": 1e3 * value} for name, value in seconds.items()]
    table(
        f"(c) a whole private step, CNN with {size:,} parameters, batch {batch}, Opacus DP-SGD = 1",
        ["side", "time"],
        [[row["side"], row["ratio"]] for row in rows],
    )
    return {"dp_step_p16_vs_opacus": seconds["ours p=16"] / seconds["opacus"]}, rows


def _train_step(network: nn.Module, optimizer: DPOptimizer, images: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(images), labels).backward()
    optimizer.step()


def tasks(quick: bool) -> list[Task]:
    """Digits, and what else is on this machine; each with its stated budget."""
    digits = Task(
        "digits",
        DigitsDataModule(batch_size=128),
        partial(MLP, 64, [64], 10),
        epochs=10 if quick else 30,
        rates=(0.2,) if quick else (0.05, 0.1, 0.2, 0.4, 0.8),
        max_grad_norm=0.5,
    )
    if quick:
        return [digits]
    small: dict[str, Any] = {
        "epochs": 5,
        "rates": (0.1, 0.3, 0.9),
        "max_grad_norm": 1.0,
        "plain_rates": (0.01, 0.03, 0.1),  # without clipping, larger ones diverge
        "rate_seeds": 1,
        "examples": 10_000,
    }
    found = [digits]
    with suppress(DatasetNotFoundError):
        fashion = FashionMNISTDataModule(batch_size=250)
        found.append(Task("Fashion-MNIST", fashion, _cnn(1, 28), **small))
    folder = os.environ.get("LIT_METHODS_DATA")
    if folder:
        cifar = HubImageDataModule("uoft-cs/cifar10", data_dir=f"{folder}/cifar10", batch_size=250)
        found.append(Task("CIFAR-10", cifar, _cnn(3, 32), **small))
    return found


def _cnn(in_channels: int, image_size: int) -> Callable[[], nn.Module]:
    return partial(SmallCNN, in_channels=in_channels, num_classes=10, widths=[8, 16], image_size=image_size)


def utility(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Test accuracy at equal epsilon, each mechanism at its own best learning rate."""
    rows: list[dict[str, Any]] = []
    for task in tasks(quick):
        found = compare(task, epsilons=(8.0,) if quick else (2.0, 8.0), seeds=2 if quick else 5)
        table(
            f"(d) test accuracy, {task.name}: {task.size} images, {task.epochs} epochs of {task.data.batch_size},"
            " delta = 1e-5",
            ["epsilon", "mechanism", "learning rate", "mean", "standard deviation", "seeds"],
            [[row[key] for key in ("epsilon", "mechanism", "rate", "mean", "spread", "seeds")] for row in found],
        )
        rows += found
    return {}, rows


def main() -> None:
    """Runs all parts, or those that `--only` names."""
    run(__doc__ or "", setup, noise_step, training_step, utility, plots={"utility": draw})


if __name__ == "__main__":
    main()
