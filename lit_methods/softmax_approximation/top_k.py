"""Top-k codecs: the largest weights of each row, and a rule or another codec for the rest."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.functional import index_dtype, pack_bits, unpack_bits


class TopK(Codec):
    """Keeps the largest share of each row, with its places.

    Args:
        share: Share of the keys that is kept, in (0, 1]; at least one key.
        tail: What becomes of the rest: ``"uniform"`` spreads the left-over mass over the other keys of positive
            weight, ``"zero"`` loses it, and a codec (``Logarithmic(4)``) keeps its shape.
        dtype: Of the kept weights.

    Guarantees:
        - Decoded rows sum to 1 (but with ``tail="zero"``); keys of weight 0 take no left-over mass.
        - The k largest weights are exact up to the rounding to ``dtype``.

    Raises:
        ValueError: If the share lies outside (0, 1], or the tail's codec does not conserve mass.
    """

    def __init__(
        self,
        share: float = 0.05,
        *,
        tail: Literal["uniform", "zero"] | Codec = "uniform",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share must lie in (0, 1], but is {share!r}.")
        if not isinstance(tail, Codec) and tail not in ("uniform", "zero"):
            raise ValueError(f"tail must be 'uniform', 'zero' or a codec, but is {tail!r}.")
        if isinstance(tail, Codec) and (tail.needs_scores or not tail.conserves_mass):
            raise ValueError(f"tail {tail!r} does not give rows that sum to 1: take Logarithmic(4), for example.")
        self.share = share
        self.tail = tail
        self.dtype = dtype
        self.name = f"top{100 * share:g}%-{tail.name if isinstance(tail, Codec) else tail}"
        self.conserves_mass = tail != "zero"

    def _count(self, keys: int) -> int:
        return max(1, math.ceil(self.share * keys - 1e-9))

    def encode(
        self, weights: Tensor, *, scores: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """See :meth:`Codec.encode`."""
        rows = weights.reshape(-1, weights.shape[-1])
        keys = rows.shape[-1]
        largest, places = rows.topk(self._count(keys), sorted=False)
        stored = (largest.to(self.dtype), places.to(index_dtype(keys)))
        if isinstance(self.tail, Codec):
            return (*stored, *self.tail.encode(rows.scatter(-1, places, 0.0), generator=generator))
        if self.tail == "uniform" and not rows.all():
            return (*stored, pack_bits(rows.gt(0).view(torch.uint8), 1))
        return stored

    def decode(self, stored: tuple[Tensor, ...], *, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """See :meth:`Codec.decode`."""
        largest, places, *rest = stored
        wide = torch.promote_types(dtype, torch.float32)
        places, largest = places.long(), largest.to(wide)
        shape = torch.Size((len(places), size[-1]))
        if self.tail == "zero":
            return largest.new_zeros(shape).scatter_(-1, places, largest).view(size).to(dtype)
        if isinstance(self.tail, Codec):
            weights = self.tail.decode(tuple(rest), size=shape, dtype=wide)
        elif rest:
            weights = unpack_bits(rest[0], 1, size[-1]).to(wide)
        else:
            weights = largest.new_ones(shape)
        weights = weights.scatter(-1, places, 0.0)
        left_over = (1 - largest.sum(-1, keepdim=True)).clamp_min_(0.0)
        weights.mul_(left_over / weights.sum(-1, keepdim=True).clamp_min_(torch.finfo(wide).tiny))
        weights.scatter_(-1, places, largest)
        if self.dtype != wide:
            weights.div_(weights.sum(-1, keepdim=True))
        return weights.view(size).to(dtype)

    def bytes_per_row(self, keys: int) -> float:
        """See :meth:`Codec.bytes_per_row`."""
        kept = self._count(keys) * (self.dtype.itemsize + index_dtype(keys).itemsize)
        return kept + (self.tail.bytes_per_row(keys) if isinstance(self.tail, Codec) else 0.0)
