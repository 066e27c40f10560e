"""The paper's rebuilt tail: a decaying exponential in rank between the kept high and low weights of a row."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Tail = Literal["paper", "geometric", "uniform", "zero"]
StepCount = Literal["masked", "all"]


def index_dtype(keys: int) -> torch.dtype:
    """Smallest integer type that holds the indices (or ranks) of ``keys`` keys."""
    if keys <= 256:
        return torch.uint8
    return torch.int16 if keys <= 2**15 else torch.int32


def descending_ranks(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sorts rows and numbers their entries, the largest first; ties keep their order.

    Args:
        weights: ``(..., N)``.

    Returns:
        The sorted rows, and each entry's rank from 0 on, in the smallest fitting integer type.
    """
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    positions = torch.arange(weights.shape[-1], device=weights.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(-1, order, positions)
    return ordered, ranks.to(index_dtype(weights.shape[-1]))


def tail_slope(high: Tensor, evicted: Tensor, low: Tensor, steps: Tensor | float, *, tail: Tail) -> Tensor:
    """Decay per rank of the rebuilt tail.

    ``"paper"`` is the published implementation's slope in closed form, ``a = (ln(h / l) + 2 (h - g)) / (n (1 - h))``;
    ``"geometric"`` leaves its two corrections out, ``a = ln(h / l) / n``; ``"uniform"`` is ``a = 0``.

    Args:
        high: ``h``, the smallest of the kept high weights.
        evicted: ``g``, the largest weight that is not kept.
        low: ``l``, the largest of the kept low weights.
        steps: ``n``, rank steps from ``h`` to ``l``.
        tail: Which slope; ``"zero"`` has none and takes 0.

    Returns:
        The slope, shape of ``high``.
    """
    tiny = torch.finfo(high.dtype).tiny
    decline = torch.log(high.clamp_min(tiny) / low.clamp_min(tiny))
    if tail == "paper":
        return (decline + 2 * (high - evicted)) / (steps * (1 - high).clamp_min(torch.finfo(high.dtype).eps))
    return decline / steps if tail == "geometric" else torch.zeros_like(high)


def rebuild_sorted(high: Tensor, low: Tensor, slope: Tensor, valid: Tensor, keys: int, *, tail: Tail) -> Tensor:
    """Rebuilds rows in the order of their ranks.

    Rank ``m - 1 + s`` gets ``exp(-a s)``, rescaled so that the row sums to 1.

    Args:
        high: The ``m`` largest weights of each row ``(R, m)``, descending.
        low: The ``m`` smallest positive ones ``(R, m)``, descending.
        slope: ``a``, ``(R, 1)``.
        valid: Number of positive weights of each row ``(R, 1)``.
        keys: ``N``.
        tail: ``"zero"`` leaves the tail empty.

    Returns:
        Rows ``(R, N)``: those with at most ``2 m`` positive weights exactly.
    """
    kept = high.shape[-1]
    ranks = torch.arange(keys, device=high.device)
    from_low = ranks - (valid.long() - kept)
    lows = low.gather(-1, from_low.clamp(0, kept - 1))
    middle = (ranks >= kept) & (from_low < 0)
    rows = torch.where((from_low >= 0) & (ranks < valid), lows, 0.0)
    rows[..., :kept] = high[..., : min(kept, keys)]
    if tail == "zero":
        return rows
    curve = torch.exp(-slope * (ranks - kept)).masked_fill_(~middle, 0.0)
    left_over = (1 - rows.sum(-1, keepdim=True)).clamp_min_(0.0)
    return rows + curve * (left_over / curve.sum(-1, keepdim=True).clamp_min_(1.0))
