"""Dropout of attention weights as eager draws it, kept as bits or drawn again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_methods.softmax_approximation._chunks import Chunk
from lit_methods.softmax_approximation._random import unmoved
from lit_methods.softmax_approximation.functional import pack_bits, unpack_bits


def draw_kept(size: tuple[int, ...], dropout_p: float, like: Tensor) -> Tensor:
    """Draws which weights dropout keeps, from the default generator, exactly as ``F.dropout`` would.

    Args:
        size: Shape of the weights.
        dropout_p: Probability of dropping.
        like: Gives device and dtype of the weights.

    Returns:
        1 where kept and 0 where dropped, int32 or boolean: the fastest type to draw.
    """
    if dropout_p == 1:
        return torch.zeros(size, device=like.device, dtype=torch.bool)
    if like.device.type != "cpu":
        return torch.native_dropout(torch.ones(size, device=like.device, dtype=like.dtype), dropout_p, True)[1]
    return torch.empty(size, dtype=torch.int32).bernoulli_(1 - dropout_p)


def draw_kept_again(size: tuple[int, ...], dropout_p: float, like: Tensor, state: Tensor) -> Tensor:
    """Draws the same from a saved state, and leaves the default generator as it is."""
    with unmoved(like.device, state):
        return draw_kept(size, dropout_p, like)


@dataclass(frozen=True)
class Dropout:
    """Dropout of one call: kept weights are multiplied by ``1 / (1 - p)``, the others by 0.

    Attributes:
        rate: ``1 / (1 - p)``, rounded to the values' dtype as eager rounds it; None without dropout.
        kept: The whole mask ``(B, H, T_q, T_k)``, where it is at hand instead of bits.
    """

    rate: float | None = None
    kept: Tensor | None = None

    @classmethod
    def of(cls, dropout_p: float, dtype: torch.dtype, kept: Tensor | None = None) -> Dropout:
        """Dropout with probability ``p`` of weights of that dtype."""
        if dropout_p == 0:
            return cls()
        return cls(torch.ones((), dtype=dtype).div_(1 - dropout_p).item() if dropout_p < 1 else 0.0, kept)

    def bits(self, chunk: Chunk) -> tuple[Tensor, ...]:
        """A piece's mask, eight weights to the byte; empty without dropout."""
        if self.kept is None:
            return ()
        return (pack_bits(chunk.of_queries(self.kept).to(torch.uint8), 1),)

    def factor(self, chunk: Chunk, bits: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor | None:
        """What a piece's weights are multiplied by, ``(b, h, G, t, T_k)``; None without dropout."""
        if self.rate is None:
            return None
        kept = unpack_bits(bits[0], 1, chunk.geometry.keys) if self.kept is None else chunk.of_queries(self.kept)
        return kept.to(dtype).mul_(self.rate)
