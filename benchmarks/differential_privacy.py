"""Banded square root noise: the price of a step, and accuracy at equal epsilon.

`python -m benchmarks.differential_privacy [--quick] [--json FILE] [--only PART]`
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from benchmarks._harness import arguments, finish, machine, medians, table
from benchmarks._utility import Task, compare
from lit_methods.backbones import MLP, SmallCNN
from lit_methods.datamodules import DigitsDataModule
from lit_methods.differential_privacy import CorrelatedNoise, CorrelatedNoiseOptimizer
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


def utility(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Test accuracy at equal epsilon, each mechanism at its own best learning rate."""
    digits = Task(
        "digits",
        partial(DigitsDataModule, batch_size=128),
        partial(MLP, 64, [64], 10),
        epochs=10 if quick else 30,
        rates=(0.2,) if quick else (0.05, 0.1, 0.2, 0.4, 0.8),
        max_grad_norm=0.5,
    )
    rows = compare(digits, epsilons=(8.0,) if quick else (2.0, 8.0), seeds=2 if quick else 5)
    table(
        f"(d) test accuracy, digits, {digits.epochs} epochs, delta = 1e-5",
        ["epsilon", "mechanism", "learning rate", "mean", "standard deviation", "seeds"],
        [[row[key] for key in ("epsilon", "mechanism", "rate", "mean", "spread", "seeds")] for row in rows],
    )
    return {}, rows


def main() -> None:
    """Runs all parts, or those that `--only` names."""
    options = arguments(__doc__ or "")
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric.utilities.rank_zero").setLevel(logging.ERROR)
    torch.manual_seed(options.seed)
    print(f"{machine()}; seed {options.seed}")
    headlines: dict[str, float] = {}
    figures: dict[str, Any] = {}
    for part in (noise_step, training_step, utility):
        if options.only is None or options.only in part.__name__:
            found, figures[part.__name__] = part(options.quick)
            headlines |= found
    finish(headlines, figures, options.json)


if __name__ == "__main__":
    main()
