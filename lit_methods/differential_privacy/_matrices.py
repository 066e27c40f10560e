"""General lower-triangular matrices: learning-rate schedules, any banded strategy, and the bound below all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import linalg
from torch import Tensor


def _as_lower_triangular(name: str, matrix: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    array = np.asarray(torch.as_tensor(matrix, dtype=torch.float64).detach().cpu())
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a finite square matrix, but has shape {tuple(array.shape)}.")
    if np.triu(array, 1).any() or not (np.diagonal(array) > 0).all():
        raise ValueError(f"{name} must be lower-triangular with a positive diagonal.")
    return array


def schedule_workload(
    learning_rates: Sequence[float] | Tensor, momentum: float = 0.0, weight_decay_factor: float = 1.0
) -> Tensor:
    """Workload matrix of SGD under a learning-rate schedule: no longer Toeplitz (Section 3).

    ``m_t = beta m_(t-1) + x_t`` and ``theta_t = alpha theta_(t-1) - eta_t m_t``.

    Args:
        learning_rates: ``eta_t`` of each step, shape ``(n,)``, all above 0.
        momentum: ``beta`` in [0, 1).
        weight_decay_factor: ``alpha`` in (0, 1].

    Returns:
        ``A`` of shape ``(n, n)``, float64, lower-triangular.

    Raises:
        ValueError: On learning rates that are not above 0.
    """
    rates = torch.as_tensor(learning_rates, dtype=torch.float64)
    if rates.ndim != 1 or not bool((rates.isfinite() & (rates > 0)).all()):
        raise ValueError(f"learning_rates must be a vector of finite numbers above 0, but is {learning_rates!r}.")
    steps = rates.numel()
    lags = torch.arange(steps)[:, None] - torch.arange(steps)[None, :]
    powers = torch.tensor(momentum, dtype=torch.float64) ** lags.clamp(min=0)
    velocity = torch.where(lags >= 0, powers, 0.0) * rates[:, None]
    rows = [velocity[0]]
    for row in velocity[1:]:
        rows.append(weight_decay_factor * rows[-1] + row)
    return torch.stack(rows)


def matrix_square_root(workload: Tensor, bandwidth: int | None = None) -> Tensor:
    """The lower-triangular square root with positive diagonal, cut to a band (Section 3, numerical route).

    Costs O(n^3): for schedules of up to a few thousand steps.

    Args:
        workload: ``A`` of shape ``(n, n)``, lower-triangular with a positive diagonal.
        bandwidth: Kept diagonals ``p``; ``None`` keeps all.

    Returns:
        ``C`` of shape ``(n, n)``, float64, lower-triangular.

    Raises:
        ValueError: On a matrix that is not lower-triangular with a positive diagonal, or a bandwidth below 1.
    """
    if bandwidth is not None and bandwidth < 1:
        raise ValueError(f"bandwidth must be at least 1, but is {bandwidth!r}.")
    root = np.real(linalg.sqrtm(_as_lower_triangular("workload", workload).T)).T
    return torch.from_numpy(np.tril(root if bandwidth is None else np.triu(root, 1 - bandwidth)))


def banded_sensitivity(strategy: Tensor, participations: int, separation: int) -> float:
    """Sensitivity of any banded strategy whose band fits the separation (VecSens, Choquette-Choo et al. 2023).

    The columns of a pattern then share no row, so that its squared norm is the sum of theirs; the best choice of at
    most ``k`` columns at least ``b`` apart is a dynamic program in O(n k).

    Args:
        strategy: ``C`` of shape ``(n, n)``, lower-triangular with a positive diagonal.
        participations: ``k``.
        separation: ``b``.

    Returns:
        The exact sensitivity.

    Raises:
        ValueError: If the band is wider than the separation, or counts are below 1.
    """
    if participations < 1 or separation < 1:
        raise ValueError(
            f"participations and separation must be at least 1, but are {participations!r}, {separation!r}."
        )
    matrix = _as_lower_triangular("strategy", strategy)
    steps = matrix.shape[0]
    if separation < steps and np.tril(matrix, -separation).any():
        raise ValueError(
            f"strategy has entries {separation} or more below the diagonal, so that two participations overlap. Cut"
            " its band to the separation."
        )
    gains = (matrix**2).sum(axis=0)
    best = np.zeros((steps + separation, min(participations, steps) + 1))
    for column in range(steps - 1, -1, -1):
        best[column] = best[column + 1]
        best[column, 1:] = np.maximum(best[column, 1:], gains[column] + best[column + separation, :-1])
    return math.sqrt(float(best[0, -1]))


def lower_bound(steps: int, participations: int = 1, momentum: float = 0.0, weight_decay_factor: float = 1.0) -> float:
    """No factorization of the SGD workload has a smaller expected error, where ``k b = n``.

    ``E >= sqrt(k) / n`` times the nuclear norm of ``A``: random signs and a random offset of the pattern give
    ``sens^2 >= (k/n) ||C||_F^2``, and ``||B||_F ||C||_F`` is at least the nuclear norm.

    Args:
        steps: ``n``.
        participations: ``k``.
        momentum: ``beta`` in [0, 1).
        weight_decay_factor: ``alpha`` in (0, 1].

    Returns:
        The bound in the units of :func:`expected_error`.

    Raises:
        ValueError: On counts below 1.
    """
    if steps < 1 or participations < 1:
        raise ValueError(f"steps and participations must be at least 1, but are {steps!r}, {participations!r}.")
    total, product = weight_decay_factor + momentum, weight_decay_factor * momentum
    inverse = linalg.toeplitz(np.array([1.0, -total, product, *[0.0] * steps])[:steps], np.zeros(steps))
    singular_values = linalg.svdvals(inverse)
    return math.sqrt(participations) * float((1.0 / singular_values).sum()) / steps
