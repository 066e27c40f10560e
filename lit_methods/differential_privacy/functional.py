"""Closed forms of banded square root noise, in float64 (Kalinin & Lampert 2024, arXiv 2405.13763).

Notation of the paper: the workload ``A = B C`` is lower-triangular Toeplitz with first column ``a``; the strategy ``C``
is banded Toeplitz with first column ``c`` (``p`` entries); ``n`` steps, ``k`` participations of an example, any two of
them at least ``b`` steps apart; ``alpha`` is the multiplicative weight decay factor and ``beta`` the momentum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import signal
from torch import Tensor

from lit_methods.differential_privacy._gaussian import gaussian_delta, gaussian_epsilon, gaussian_noise_multiplier
from lit_methods.differential_privacy._matrices import (
    banded_sensitivity,
    lower_bound,
    matrix_square_root,
    schedule_workload,
)

__all__ = [
    "banded_inverse_square_root_coefficients",
    "banded_sensitivity",
    "banded_square_root_coefficients",
    "decoder_norm",
    "expected_error",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_noise_multiplier",
    "lower_bound",
    "matrix_square_root",
    "non_increasing_majorant",
    "schedule_workload",
    "series_inverse",
    "series_square_root",
    "sgd_workload",
    "toeplitz_sensitivity",
    "torch_sgd_roots",
]

Series = Tensor | Sequence[float] | NDArray[np.float64]


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, but is {value!r}.")


def _check_optimizer(momentum: float, weight_decay_factor: float) -> None:
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), but is {momentum!r}.")
    if not 0.0 < weight_decay_factor <= 1.0:
        raise ValueError(
            f"weight_decay_factor must lie in (0, 1], but is {weight_decay_factor!r}: it is the factor that the"
            " weights are multiplied by in each step (1 without decay), not PyTorch's `weight_decay`."
        )


def _as_series(name: str, series: Series) -> NDArray[np.float64]:
    array = np.asarray(torch.as_tensor(series, dtype=torch.float64).detach().cpu())
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty vector, but has shape {tuple(array.shape)}.")
    if not np.isfinite(array).all() or array[0] <= 0:
        raise ValueError(f"{name} must be finite with a positive first entry, but starts with {array[:3].tolist()}.")
    return array


def banded_square_root_coefficients(bandwidth: int, momentum: float = 0.0, weight_decay_factor: float = 1.0) -> Tensor:
    """First ``p`` coefficients of the square root of the SGD workload (Theorem 1).

    They are the power series of ``((1 - alpha z)(1 - beta z))^(-1/2)``, computed by its three-term recursion in O(p),
    arranged so that neither ``alpha + beta`` nor ``alpha * beta`` is rounded.

    Args:
        bandwidth: Number ``p`` of kept diagonals of ``C``, the main one included.
        momentum: ``beta`` in [0, 1).
        weight_decay_factor: ``alpha`` in (0, 1].

    Returns:
        ``c`` of shape ``(p,)``, float64, ``c[0] == 1``.

    Guarantees:
        - Positive and non-increasing, so that Theorem 2 gives the exact sensitivity.
        - ``c * c`` (series product) equals :func:`sgd_workload` in the first ``p`` entries.

    Raises:
        ValueError: On a bandwidth below 1 or parameters out of range.
    """
    _check_count("bandwidth", bandwidth)
    _check_optimizer(momentum, weight_decay_factor)
    coefficients = [1.0, 0.5 * (weight_decay_factor + momentum)]
    for j in range(2, bandwidth):
        last = (j - 0.5) * coefficients[j - 1]
        inner = last - weight_decay_factor * (j - 1) * coefficients[j - 2]
        coefficients.append((weight_decay_factor * last + momentum * inner) / j)
    return torch.tensor(coefficients[:bandwidth], dtype=torch.float64)


def sgd_workload(steps: int, momentum: float = 0.0, weight_decay_factor: float = 1.0) -> Tensor:
    """First column of the workload of SGD with momentum and weight decay (Section 2).

    ``a_j = sum_i alpha^i beta^(j - i)``: what a gradient contributes to the parameters ``j`` steps later, in units of
    the learning rate.

    Args:
        steps: Number ``n`` of steps.
        momentum: ``beta`` in [0, 1).
        weight_decay_factor: ``alpha`` in (0, 1].

    Returns:
        ``a`` of shape ``(n,)``, float64.

    Raises:
        ValueError: On a step count below 1 or parameters out of range.
    """
    _check_count("steps", steps)
    _check_optimizer(momentum, weight_decay_factor)
    impulse = np.zeros(steps)
    impulse[0] = 1.0
    # One pole after the other: the second-order recursion loses a digit where both are near 1.
    powers = signal.lfilter([1.0], [1.0, -momentum], impulse)
    return torch.from_numpy(signal.lfilter([1.0], [1.0, -weight_decay_factor], powers))


def series_square_root(workload: Series, bandwidth: int) -> Tensor:
    """First ``p`` coefficients of the power-series square root of any causal, time-invariant workload.

    For optimizers outside the family of Theorem 1 (Nesterov, dampening, complex roots). Check monotonicity, or let
    :func:`toeplitz_sensitivity` bound it.

    Args:
        workload: First column ``a`` of the workload, at least ``p`` entries, ``a[0] > 0``.
        bandwidth: Number ``p`` of coefficients.

    Returns:
        ``c`` of shape ``(p,)``, float64.

    Raises:
        ValueError: On a bandwidth below 1 or a workload that is shorter than it.
    """
    _check_count("bandwidth", bandwidth)
    series = _as_series("workload", workload)
    if series.size < bandwidth:
        raise ValueError(f"workload must have at least bandwidth={bandwidth} entries, but has {series.size}.")
    root = np.zeros(bandwidth)
    root[0] = math.sqrt(series[0])
    for j in range(1, bandwidth):
        root[j] = (series[j] - root[1:j] @ root[j - 1 : 0 : -1]) / (2.0 * root[0])
    return torch.from_numpy(root)


def torch_sgd_roots(learning_rate: float, momentum: float, weight_decay: float) -> tuple[float, float] | None:
    """The paper's ``(alpha, beta)`` of ``torch.optim.SGD`` with its coupled weight decay.

    With ``g <- g + lambda * theta`` before the momentum, the workload is again ``A_{alpha, beta}``, where alpha and
    beta are the roots of ``r^2 - (1 + momentum - lr * lambda) r + momentum``.

    Args:
        learning_rate: ``lr``, above 0.
        momentum: PyTorch's ``momentum`` in [0, 1).
        weight_decay: PyTorch's ``weight_decay`` (lambda), at least 0.

    Returns:
        ``(weight_decay_factor, momentum)`` for the functions here, or ``None`` where ``lr * lambda`` is so large that
        the roots are complex or negative: then use :func:`series_square_root`.

    Raises:
        ValueError: On parameters out of range.
    """
    _check_optimizer(momentum, 1.0)
    if not (0 < learning_rate < math.inf and 0 <= weight_decay < math.inf):
        raise ValueError(
            f"learning_rate must be above 0 and weight_decay at least 0, but are {learning_rate!r}, {weight_decay!r}."
        )
    if weight_decay == 0:
        return 1.0, momentum
    total = 1.0 + momentum - learning_rate * weight_decay
    discriminant = total * total - 4.0 * momentum
    if discriminant < 0 or total <= 0:
        return None
    alpha = 0.5 * (total + math.sqrt(discriminant))
    return min(alpha, 1.0), momentum / alpha


def banded_inverse_square_root_coefficients(
    bandwidth: int, momentum: float = 0.0, weight_decay_factor: float = 1.0
) -> Tensor:
    """First ``p`` coefficients of the inverse square root of the SGD workload: BISR's noising matrix ``C^-1``.

    They are the power series of ``((1 - alpha z)(1 - beta z))^(1/2)`` (Kalinin, McKenna, Upadhyay & Lampert 2025,
    arXiv 2505.12128). Where BSR cuts ``C`` to a band, BISR cuts ``C^-1``.

    Args:
        bandwidth: Number ``p`` of kept diagonals of ``C^-1``.
        momentum: ``beta`` in [0, 1).
        weight_decay_factor: ``alpha`` in (0, 1].

    Returns:
        ``d`` of shape ``(p,)``, float64, ``d[0] == 1``.

    Raises:
        ValueError: On a bandwidth below 1 or parameters out of range.
    """
    _check_count("bandwidth", bandwidth)
    _check_optimizer(momentum, weight_decay_factor)
    coefficients = [1.0, -0.5 * (weight_decay_factor + momentum)]
    for j in range(2, bandwidth):
        last = (j - 1.5) * coefficients[j - 1]
        inner = last - weight_decay_factor * (j - 3) * coefficients[j - 2]
        coefficients.append((weight_decay_factor * last + momentum * inner) / j)
    return torch.tensor(coefficients[:bandwidth], dtype=torch.float64)


def series_inverse(series: Series, steps: int) -> Tensor:
    """First ``n`` coefficients of the reciprocal of a power series: ``C`` from ``C^-1`` and the other way round.

    Args:
        series: Coefficients, the first above 0; entries past the end are zero.
        steps: Number ``n`` of coefficients to return.

    Returns:
        The reciprocal's coefficients, shape ``(n,)``, float64.

    Raises:
        ValueError: On a step count below 1 or a series that is not finite with positive start.
    """
    _check_count("steps", steps)
    impulse = np.zeros(steps)
    impulse[0] = 1.0
    return torch.from_numpy(signal.lfilter([1.0], _as_series("series", series)[:steps], impulse))


def non_increasing_majorant(coefficients: Series) -> Tensor:
    """Least non-increasing sequence above the absolute values: the running maximum from the right.

    A strategy with these coefficients is at least as sensitive under any participation pattern.

    Args:
        coefficients: Shape ``(p,)``.

    Returns:
        The majorant, shape ``(p,)``, float64.

    Raises:
        ValueError: On coefficients that are not a finite vector with positive start.
    """
    sizes = np.abs(_as_series("coefficients", coefficients))
    return torch.from_numpy(np.maximum.accumulate(sizes[::-1])[::-1].copy())


def toeplitz_sensitivity(coefficients: Series, steps: int, participations: int, separation: int) -> float:
    """Sensitivity of a lower-triangular Toeplitz strategy under ``(k, b)`` participation (Theorem 2).

    Args:
        coefficients: First column ``c`` of ``C``; entries past the end are zero.
        steps: Number ``n`` of steps.
        participations: Most participations ``k`` of one example.
        separation: Least distance ``b`` in steps between two of them.

    Returns:
        ``max over patterns || sum_i C[:, i] u_i ||`` for contributions of norm at most 1.

    Guarantees:
        - Exact for non-negative, non-increasing coefficients and any ``b``, also ``p > b``: the worst pattern is
          ``1, 1 + b, 1 + 2b, ...``
        - Exact for any coefficients where ``p <= b``: the columns of a pattern then share no row.
        - An upper bound for all others: their non-increasing majorant takes their place.

    Raises:
        ValueError: On counts below 1 or coefficients that are not a finite vector with positive start.
    """
    _check_count("steps", steps)
    _check_count("participations", participations)
    _check_count("separation", separation)
    column = _as_series("coefficients", coefficients)[:steps]
    bandwidth = column.size
    times = min(participations, -(-steps // separation))
    if bandwidth <= separation:
        tail = column[: steps - (times - 1) * separation]
        return math.sqrt((times - 1) * float(column @ column) + float(tail @ tail))
    column = non_increasing_majorant(column).numpy()
    rows = min(steps, bandwidth + (times - 1) * separation)
    blocks = -(-rows // separation)
    padded = np.zeros(blocks * separation)
    padded[: min(bandwidth, rows)] = column[:rows]
    summed = np.cumsum(padded.reshape(blocks, separation), axis=0)
    summed[times:] -= summed[:-times].copy()
    total = summed.reshape(-1)[:rows]
    return math.sqrt(float(total @ total))


def decoder_norm(coefficients: Series, workload: Series) -> float:
    """Root mean squared row norm ``||B||_F / sqrt(n)`` of the decoder ``B = A C^-1``.

    Args:
        coefficients: First column ``c`` of ``C``; entries past the end are zero.
        workload: First column ``a`` of ``A``, of shape ``(n,)``.

    Returns:
        The error per coordinate, averaged over the steps, for unit noise before the decoder.

    Raises:
        ValueError: On series that are not finite vectors with positive start.
    """
    column, series = _as_series("coefficients", coefficients), _as_series("workload", workload)
    steps = series.size
    decoder = signal.lfilter([1.0], column[:steps], series)
    return math.sqrt(float(np.arange(steps, 0, -1) @ (decoder * decoder)) / steps)


def expected_error(
    coefficients: Series,
    steps: int,
    participations: int,
    separation: int,
    momentum: float = 0.0,
    weight_decay_factor: float = 1.0,
) -> float:
    """Expected approximation error ``E(B, C) = ||B||_F * sens(C) / sqrt(n)`` (equation 4).

    The root mean squared error of the intermediate models is ``lr * sigma * max_grad_norm * E / batch_size``.

    Args:
        coefficients: First column ``c`` of ``C``.
        steps: Number ``n`` of steps.
        participations: Most participations ``k`` of one example.
        separation: Least distance ``b`` in steps between two of them.
        momentum: ``beta`` in [0, 1).
        weight_decay_factor: ``alpha`` in (0, 1].

    Returns:
        The error for ``sigma = max_grad_norm = 1``.

    Raises:
        ValueError: On parameters out of range.
    """
    sensitivity = toeplitz_sensitivity(coefficients, steps, participations, separation)
    return sensitivity * decoder_norm(coefficients, sgd_workload(steps, momentum, weight_decay_factor))
