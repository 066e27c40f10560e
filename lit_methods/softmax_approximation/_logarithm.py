"""Logarithmic codes of probability rows: a few levels below each row's maximum, and one code for zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_RANGE = 1e-6


def _distances(scores: Tensor, depth: float) -> tuple[Tensor, Tensor]:
    """Scores below their row's maximum (fresh), and the row's range in nats, down to at most ``depth``."""
    below = scores - scores.amax(-1, keepdim=True)
    span = F.threshold(below, -depth, 0.0).amin(-1, keepdim=True).neg_().clamp_min_(SMALLEST_RANGE)
    return below, span


def log_codes(scores: Tensor, bits: int, depth: float | None = None) -> tuple[Tensor, Tensor]:
    """Rounds each row of scores to ``2 ** bits - 1`` levels.

    With ``u`` in [0, 1] the distance to the row's maximum over the row's range, level ``t`` in [0, 1] stands for
    ``u = t (1 + t) / 2``: steps at the row's minimum are three times those at its maximum, where the mass is. The
    range ends at the row's minimum or, in rows with much smaller weights, at ``depth``; weights beyond count as zero.

    Args:
        scores: Floating ``(..., N)``, up to a constant per row the logarithms of the weights; ``-inf`` where zero.
        bits: Bits of one code, 2 to 8.
        depth: Largest range in nats; ``None`` takes ``ln(N) + 4``, beyond which no more than ``exp(-4)`` of the
            row's largest weight can lie in all.

    Returns:
        Codes, uint8 ``(..., N)``: 0 for zero, ``2 ** bits - 1`` for the row's maximum; and the ranges in nats,
        float32 ``(..., 1)``: NaN in rows without a finite score.
    """
    top = 2**bits - 1
    below, span = _distances(scores, math.log(scores.shape[-1]) + 4.0 if depth is None else depth)
    root = below.mul_(-2.0 / span).add_(0.25).sqrt_()
    codes = root.mul_(1.0 - top).add_(top + 0.5 * (top - 1) + 0.5).clamp_(0.0, top)
    return codes.to(torch.int32).to(torch.uint8), span.float()


def log_weights(codes: Tensor, span: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Undoes :func:`log_codes`.

    Args:
        codes: uint8 ``(..., N)``.
        span: Ranges ``(..., 1)``.
        bits: Bits of one code.
        dtype: float32 or float64.

    Returns:
        Weights ``(..., N)``, rows summing to 1.
    """
    top = 2**bits - 1
    root = F.threshold(codes.to(dtype), 0.5, -math.inf).sub_(top + 0.5 * (top - 1))
    scores = root.square_().mul_(span.to(dtype) * (-0.5 / (top - 1) ** 2))
    return torch.softmax(scores, -1)


def stochastic_log_codes(
    weights: Tensor, bits: int, generator: torch.Generator, depth: float | None = None
) -> tuple[Tensor, Tensor]:
    """Rounds each weight to one of its two neighbouring levels at random, so that the level's mean is the weight.

    The levels are 0 and ``2 ** bits - 1`` values in geometric progression up to the row's maximum.

    Args:
        weights: float32 or float64 ``(..., N)``, not negative.
        bits: Bits of one code, 2 to 8.
        generator: On the device of the weights.
        depth: Largest range of the progression in nats; ``None`` takes what leaves little variance for Gaussian
            scores: ``ln(N)``, 2 nats less with 2 bits, at least 1.

    Returns:
        Codes, uint8 ``(..., N)``; and each row's maximum and range, float32 ``(..., 2)``.
    """
    top = 2**bits - 1
    keys = weights.shape[-1]
    if depth is None:
        depth = max(1.0, math.log(keys) - (2.0 if bits == 2 else 0.0))
    peak = weights.amax(-1, keepdim=True).float()
    relative = weights.float() / peak
    below, span = _distances(relative.log(), depth)
    floors = below.mul_((top - 1) / span).add_(top).floor_().clamp_(0, top - 1)
    lower, upper = (_levels(floors + above, span, top) for above in (0.0, 1.0))
    floors += relative.sub_(lower) > _uniform(weights.shape, generator).mul_(upper.sub_(lower))
    return floors.to(torch.int32).to(torch.uint8), torch.cat([peak, span], -1)


def stochastic_log_weights(codes: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Undoes :func:`stochastic_log_codes`.

    Args:
        codes: uint8 ``(..., N)``.
        scale: Maxima and ranges ``(..., 2)``.
        bits: Bits of one code.
        dtype: float32 or float64.

    Returns:
        Weights ``(..., N)``: their mean over the draws is what was encoded; rows sum to 1 in the mean only.
    """
    peak, span = scale.to(dtype).unsqueeze(-2).unbind(-1)
    return _levels(codes.to(dtype), span, 2**bits - 1).mul_(peak)


def _levels(codes: Tensor, span: Tensor, top: int) -> Tensor:
    """Levels over the row's maximum: ``exp(-span (top - code) / (top - 1))``, and 0 for code 0."""
    exponents = F.threshold(codes, 0.5, -math.inf).sub_(top)
    return exponents.mul_(span / (top - 1)).exp_()


def _uniform(size: torch.Size, generator: torch.Generator) -> Tensor:
    """Uniform draws from (0, 1) of 16 bits each: one draw of the generator makes four, which halves its cost."""
    count = size.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    halves = words.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]
    return halves.to(torch.float32).add_(32768.5).mul_(2.0**-16).view(size)
