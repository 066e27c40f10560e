"""The codec of Lee & Lee (NeurIPS 2023): both ends of each row, a slope, and the rank of every weight."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.functional import (
    StepCount,
    Tail,
    descending_ranks,
    index_dtype,
    rebuild_sorted,
    tail_slope,
    valid_counts,
)


class RankedTail(Codec):
    """Keeps the ``m`` largest and ``m`` smallest positive weights, and rebuilds the rest by rank.

    Masked keys have weight 0 and the last ranks. In a row of ``n_v`` positive weights, those of ranks ``m`` to
    ``n_v - m - 1`` get the left-over mass in a decaying exponential.

    Args:
        kept: ``m``, weights kept at either end.
        tail: The slope: ``"paper"`` as published, ``"geometric"`` without its corrections, ``"uniform"``, or
            ``"zero"``, which loses the mass.
        n_steps: Steps over which the slope is taken: ``"masked"`` counts those between the kept ends,
            ``n_v - 2 m + 1``; ``"all"`` takes ``N``. The published implementation does the first on masked and the
            second on unmasked batches.

    Guarantees:
        - Decoded rows sum to 1 (but with ``tail="zero"``), kept weights are exact, and the order of weights stays.
        - Rows of at most ``2 m`` positive weights are exact.
        - Ranks past 256 keys take wider integers.

    Raises:
        ValueError: If ``kept`` is below 1 or a reading is unknown.
    """

    def __init__(self, kept: int = 5, *, tail: Tail = "paper", n_steps: StepCount = "masked") -> None:
        if kept < 1:
            raise ValueError(f"kept must be at least 1 weight at either end of a row, but is {kept!r}.")
        if tail not in get_args(Tail):
            raise ValueError(f"tail must be one of {get_args(Tail)}, but is {tail!r}.")
        if n_steps not in get_args(StepCount):
            raise ValueError(f"n_steps must be one of {get_args(StepCount)}, but is {n_steps!r}.")
        self.kept = kept
        self.tail: Tail = tail
        self.n_steps: StepCount = n_steps
        self.name = "paper" if tail == "paper" else f"paper-{tail}"
        self.conserves_mass = tail != "zero"

    def encode(
        self, weights: Tensor, *, scores: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """See :meth:`Codec.encode`."""
        rows = weights.reshape(-1, weights.shape[-1])
        keys, kept = rows.shape[-1], self.kept
        valid = valid_counts(rows)
        ordered, ranks = descending_ranks(rows)
        ends = torch.arange(kept, device=rows.device)
        high = ordered.gather(-1, ends.clamp_max(keys - 1).expand(len(rows), -1))
        low = ordered.gather(-1, (valid - kept + ends).clamp(0, keys - 1).long())
        evicted = ordered[:, min(kept, keys - 1), None]
        steps = (valid - 2 * kept + 1).clamp_min(1) if self.n_steps == "masked" else keys
        slope = tail_slope(high[:, -1:], evicted, low[:, :1], steps, tail=self.tail)
        return torch.cat([high, low, slope, valid.to(rows.dtype)], -1), ranks

    def decode(self, stored: tuple[Tensor, ...], *, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """See :meth:`Codec.decode`."""
        block, ranks = stored
        high, low, slope, valid = torch.split(block, [self.kept, self.kept, 1, 1], -1)
        ordered = rebuild_sorted(high, low, slope, valid, size[-1], tail=self.tail)
        return ordered.gather(-1, ranks.long()).view(size).to(dtype)

    def bytes_per_row(self, keys: int) -> float:
        """See :meth:`Codec.bytes_per_row`."""
        return 4.0 * (2 * self.kept + 2) + index_dtype(keys).itemsize * keys
