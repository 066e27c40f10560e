"""Slow and obvious references for the privacy mathematics: dense matrices, exhaustive search, exact fractions.

Nothing here imports the library under test. `reference.json` holds numbers that were computed elsewhere.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, linalg

Array = NDArray[np.float64]


def recorded(table: str) -> list[dict[str, Any]]:
    """The rows of one table of `reference.json`, as dictionaries."""
    content = json.loads((Path(__file__).parent / "reference.json").read_text())[table]
    return [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]


def lower_toeplitz(column: Sequence[float] | Array, steps: int) -> Array:
    """The `(steps, steps)` lower-triangular Toeplitz matrix with this first column, zero past its end."""
    padded = np.zeros(steps)
    padded[: min(steps, len(column))] = np.asarray(column, dtype=np.float64)[:steps]
    return np.asarray(linalg.toeplitz(padded, np.zeros(steps)))


def simulated_workload(steps: int, momentum: float, weight_decay_factor: float) -> Array:
    """The workload matrix, by running the update rule on each unit gradient in turn."""
    matrix = np.zeros((steps, steps))
    for source in range(steps):
        velocity = position = 0.0
        for step in range(steps):
            velocity = momentum * velocity + float(step == source)
            position = weight_decay_factor * position + velocity
            matrix[step, source] = position
    return matrix


def exact_coefficients(bandwidth: int, momentum: Fraction, weight_decay_factor: Fraction) -> list[Fraction]:
    """Theorem 1 as it is written, in exact fractions."""
    root = [Fraction(math.comb(2 * i, i), 4**i) for i in range(bandwidth)]
    return [
        sum(
            (weight_decay_factor ** (j - i) * root[j - i] * root[i] * momentum**i for i in range(j + 1)),
            Fraction(0),
        )
        for j in range(bandwidth)
    ]


def participation_patterns(steps: int, participations: int, separation: int) -> Iterator[tuple[int, ...]]:
    """All non-empty sets of at most `participations` steps, any two at least `separation` apart."""
    for count in range(1, participations + 1):
        for pattern in itertools.combinations(range(steps), count):
            if all(later - earlier >= separation for earlier, later in itertools.pairwise(pattern)):
                yield pattern


def exhaustive_sensitivity(strategy: Array, participations: int, separation: int) -> float:
    """The largest norm over all patterns: exact for a Gram matrix without negative entries, else an upper bound."""
    gram = np.abs(strategy.T @ strategy)
    patterns = participation_patterns(strategy.shape[1], participations, separation)
    return math.sqrt(max(float(gram[np.ix_(pattern, pattern)].sum()) for pattern in patterns))


def exhaustive_signed_sensitivity(strategy: Array, participations: int, separation: int) -> float:
    """The largest norm over all patterns and signs of scalar contributions: at most the true sensitivity."""
    largest = 0.0
    for pattern in participation_patterns(strategy.shape[1], participations, separation):
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(pattern)))).T
        largest = max(largest, float(np.linalg.norm(strategy[:, pattern] @ signs, axis=0).max()))
    return largest


def column_norm_sensitivity(strategy: Array, participations: int, separation: int) -> float:
    """Dynamic program over squared column norms (VecSens): exact where columns of a pattern do not overlap."""
    gains = (strategy**2).sum(axis=0)
    best = np.zeros((participations + 1, len(gains) + separation))
    for step in reversed(range(len(gains))):
        for left in range(1, participations + 1):
            taken = gains[step] + best[left - 1, step + separation]
            best[left, step] = max(taken, best[left, step + 1])
    return math.sqrt(best[participations, 0])


def dense_decoder_norm(strategy: Array, workload: Array) -> float:
    """`||A C^-1||_F / sqrt(n)`."""
    decoder = linalg.solve_triangular(strategy.T, workload.T, lower=False).T
    return float(np.linalg.norm(decoder)) / math.sqrt(len(workload))


def nuclear_lower_bound(workload: Array, participations: int) -> float:
    """What no factorization can go below when an example may take part every `n / k` steps."""
    return math.sqrt(participations) / len(workload) * float(np.linalg.norm(workload, "nuc"))


def integrated_gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    """The hockey-stick divergence of N(mu, 1) from N(0, 1) with `mu = 1 / noise_multiplier`, by quadrature."""
    mu = 1.0 / noise_multiplier
    threshold = epsilon / mu + mu / 2

    def excess(x: float) -> float:
        density = math.exp(-((x - mu) ** 2) / 2) / math.sqrt(2 * math.pi)
        return density * -math.expm1(epsilon - mu * x + mu * mu / 2)

    peak = max(threshold, mu)
    edges = [threshold, peak + 1.0, peak + 4.0, peak + 12.0, peak + 40.0]
    return math.fsum(
        integrate.quad(excess, low, high, epsabs=0.0, epsrel=1e-12, limit=200)[0]
        for low, high in itertools.pairwise(edges)
    )
