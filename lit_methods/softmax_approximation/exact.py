"""Codecs with exact gradients: keep the weights once, or keep nothing and compute them again."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lit_methods.softmax_approximation.codec import Codec


class Merged(Codec):
    """The weights themselves, once: dropout and the value product keep nothing of their own (Tempo, 2022)."""

    name = "merged"
    is_exact: ClassVar[bool] = True

    def encode(
        self, weights: Tensor, *, scores: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """See :meth:`Codec.encode`."""
        return (weights.reshape(-1, weights.shape[-1]),)

    def decode(self, stored: tuple[Tensor, ...], *, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """See :meth:`Codec.decode`."""
        return stored[0].view(size).to(dtype)

    def bytes_per_row(self, keys: int) -> float:
        """See :meth:`Codec.bytes_per_row`."""
        return 4.0 * keys


class Recompute(Codec):
    """Nothing of the weights: backward computes them again from query, key and mask (Rabe & Staats, 2021)."""

    name = "recompute"
    is_exact: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = True

    def encode(
        self, weights: Tensor, *, scores: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Keeps nothing."""
        return ()

    def decode(self, stored: tuple[Tensor, ...], *, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """Raises: there is nothing to decode from."""
        raise TypeError(
            "codec 'recompute' keeps nothing to decode: it needs query and key, as softmax_attention has them. Where"
            " only the weights are at hand take 'merged' (exact) or 'log8'."
        )

    def bytes_per_row(self, keys: int) -> float:
        """See :meth:`Codec.bytes_per_row`."""
        return 0.0


class BFloat16(Codec):
    """The weights in bfloat16, rescaled to sum to 1: rounding is the only error."""

    name = "bf16"

    def encode(
        self, weights: Tensor, *, scores: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """See :meth:`Codec.encode`."""
        return (weights.reshape(-1, weights.shape[-1]).to(torch.bfloat16, copy=True),)

    def decode(self, stored: tuple[Tensor, ...], *, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """See :meth:`Codec.decode`."""
        weights = stored[0].view(size).to(torch.promote_types(dtype, torch.float32), copy=True)
        return weights.div_(weights.sum(-1, keepdim=True)).to(dtype)

    def bytes_per_row(self, keys: int) -> float:
        """See :meth:`Codec.bytes_per_row`."""
        return 2.0 * keys
