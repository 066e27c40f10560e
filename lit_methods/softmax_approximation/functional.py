"""The mathematics of approximated softmax outputs, on plain tensors.

Notation of the room: a row of scores ``x`` over ``N`` keys, its weights ``y = softmax(x)``, the approximation ``y'``
that backward sees, ``g`` the gradient of the loss with respect to ``y``, ``m`` the weights kept at either end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_methods.softmax_approximation._logarithm import (
    log_codes,
    log_weights,
    stochastic_log_codes,
    stochastic_log_weights,
)
from lit_methods.softmax_approximation._packing import pack_bits, packed_width, unpack_bits
from lit_methods.softmax_approximation._tail import (
    StepCount,
    Tail,
    descending_ranks,
    index_dtype,
    rebuild_sorted,
    tail_slope,
)

__all__ = [
    "StepCount",
    "Tail",
    "cosine_similarity",
    "descending_ranks",
    "error_bound",
    "index_dtype",
    "kept_mass",
    "log_codes",
    "log_weights",
    "pack_bits",
    "packed_width",
    "rebuild_sorted",
    "relative_error",
    "softmax_backward",
    "stochastic_log_codes",
    "stochastic_log_weights",
    "tail_slope",
    "unpack_bits",
    "valid_counts",
]


def softmax_backward(weights: Tensor, grad: Tensor, row_constant: Tensor | None = None) -> Tensor:
    """Gradient with respect to the scores, ``y (g - c)`` with ``c = sum_j y_j g_j``.

    Args:
        weights: ``y`` or its approximation, ``(..., N)``.
        grad: ``g``, ``(..., N)``.
        row_constant: ``c`` where it is known exactly, ``(..., 1)``: inside attention it is the inner product of the
            output and its gradient. Then entries with exact weights get exact gradients, the result is linear in the
            weights, and a constant added to ``g`` cancels whether or not the weights sum to 1.

    Returns:
        ``(..., N)``.
    """
    if row_constant is None:
        row_constant = (weights * grad).sum(-1, keepdim=True)
    return weights * (grad - row_constant)


def valid_counts(weights: Tensor) -> Tensor:
    """Positive weights of each row, int32 ``(..., 1)``: masked keys have none."""
    return weights.gt(0).sum(-1, keepdim=True, dtype=torch.int32)


def kept_mass(weights: Tensor, approximation: Tensor) -> Tensor:
    """Share of each row's mass that the approximation leaves in place, ``sum_j min(y_j, y'_j)``, shape ``(...)``."""
    return torch.minimum(weights, approximation).sum(-1)


def error_bound(weights: Tensor, approximation: Tensor, grad: Tensor) -> Tensor:
    """Bound on the 1-norm of the gradient's error in each row, for rows of equal mass.

    With ``d = y' - y`` the error is ``d (g - c) - y' <d, g>``. As ``d`` sums to 0, ``|<d, g>|`` is at most half its
    1-norm times the range ``R`` of ``g``, so that the error is at most ``3/2 R |d|_1``: three times ``R`` times the
    misplaced mass.

    Args:
        weights: ``y``, ``(..., N)``.
        approximation: ``y'``, ``(..., N)``.
        grad: ``g``, ``(..., N)``.

    Returns:
        Shape ``(...)``.
    """
    spread = grad.amax(-1) - grad.amin(-1)
    return 1.5 * spread * (approximation - weights).abs().sum(-1)


def relative_error(approximation: Tensor, exact: Tensor) -> Tensor:
    """Euclidean norm of the difference over that of the exact tensor; 0 where both are zero. A scalar."""
    difference, norm = (approximation - exact).norm(), exact.norm()
    return torch.where(difference == 0, 0.0, difference / norm)


def cosine_similarity(approximation: Tensor, exact: Tensor) -> Tensor:
    """Cosine of the angle between two tensors taken as vectors; 1 where both are zero. A scalar."""
    lengths = approximation.norm() * exact.norm()
    both_zero = (approximation.norm() == 0) & (exact.norm() == 0)
    return torch.where(both_zero, 1.0, (approximation * exact).sum() / lengths)
