"""Slow and plain versions of what the room computes, written from the formulas."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_methods.softmax_approximation import Codec

GOLDEN_SCORES = torch.tensor([0.0, 3.0, -1.0, 2.0, -4.0, 1.0, -2.0, -3.0], dtype=torch.float64)


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    window: int | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention as models write it, nothing fused: the output and the weights after dropout."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    hidden = [
        [(is_causal and j > i) or (window is not None and abs(i - j) >= window) for j in range(scores.shape[-1])]
        for i in range(scores.shape[-2])
    ]
    scores = scores.masked_fill(torch.tensor(hidden), -math.inf)
    weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, dropout_p) if dropout_p else weights
    return torch.matmul(weights, value), weights


def paper_row(weights: list[float], kept: int, *, tail: str = "paper", n_steps: str = "masked") -> list[float]:
    """One row through the published scheme: sort, keep both ends, rebuild the middle by rank."""
    positive = sorted((w for w in weights if w > 0), reverse=True)
    if len(positive) <= 2 * kept:
        return list(weights)
    high, low = positive[:kept], positive[-kept:]
    h, g, l = high[-1], positive[kept], low[0]  # noqa: E741  the paper's letter
    n = len(positive) - 2 * kept + 1 if n_steps == "masked" else len(weights)
    slope = {
        "paper": (math.log(h / l) + 2 * (h - g)) / (n * (1 - h)),
        "geometric": math.log(h / l) / n,
        "uniform": 0.0,
        "zero": 0.0,
    }[tail]
    curve = [h * math.exp(-slope * s) for s in range(1, len(positive) - 2 * kept + 1)]
    left_over = 0.0 if tail == "zero" else 1 - sum(high) - sum(low)
    ordered = high + [t * left_over / sum(curve) for t in curve] + low
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    row = [0.0] * len(weights)
    for rank, place in enumerate(order[: len(positive)]):
        row[place] = ordered[rank]
    return row


def round_trip(codec: Codec, weights: Tensor) -> Tensor:
    """Weights as backward would see them."""
    return codec.decode(codec.encode(weights), size=weights.shape, dtype=weights.dtype)


def random_weights(*size: int, spread: float = 1.0, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Softmax of Gaussian scores."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(spread * torch.randn(*size, generator=generator, dtype=dtype), -1)


def random_heads(
    batch: int = 2, heads: int = 4, queries: int = 7, keys: int = 9, key_heads: int | None = None, **options: object
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as models have them: heads are a view of the last dimension."""
    generator = torch.Generator().manual_seed(3)
    dtype = options.get("dtype", torch.float32)
    key_heads = heads if key_heads is None else key_heads
    sizes = [(batch, queries, heads, 8), (batch, keys, key_heads, 8), (batch, keys, key_heads, 6)]
    query, key, value = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2).requires_grad_()
        for size in sizes
    )
    return query, key, value


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(8)
    return torch.autograd.grad(output, inputs, torch.randn(output.shape, generator=generator).to(output.dtype))
