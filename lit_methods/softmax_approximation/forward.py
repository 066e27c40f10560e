"""The forward pass, piece by piece: exact, in eager's order of operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lit_methods.softmax_approximation._chunks import Chunk, Geometry
from lit_methods.softmax_approximation._masks import additive, visible
from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.dropout import Dropout


@dataclass(frozen=True)
class Settings:
    """Everything of a call that is no tensor, as described at :func:`~.attention.softmax_attention`."""

    geometry: Geometry
    codec: Codec
    dropout_p: float
    need_weights: bool
    exact_row_constant: bool
    replay_dropout: bool
    chunk_elements: int
    scale: float = 1.0
    is_causal: bool = False
    window: int | None = None
    zero_fully_masked: bool = False

    def chunks(self) -> list[Chunk]:
        """The pieces of the call."""
        return list(self.geometry.chunks(self.chunk_elements))


@dataclass(frozen=True)
class Inputs:
    """The tensors of a call; without query and key, ``bias`` holds the scores."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Piece:
    """What forward leaves of one piece for backward.

    Attributes:
        stored: The codec's tensors.
        kept: Dropout's mask in bits; empty without dropout or if it is drawn again.
        seeing: False for queries whose keys are all masked, ``(b, h, G, t, 1)``; empty if there are none.
    """

    stored: tuple[Tensor, ...]
    kept: tuple[Tensor, ...]
    seeing: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (*self.stored, *self.kept, *self.seeing)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many of each kind."""
        return len(self.stored), len(self.kept), len(self.seeing)


def chunk_scores(settings: Settings, chunk: Chunk, inputs: Inputs) -> Tensor:
    """Masked scores ``(b, h, G, t, T_k)`` of one piece, float32 or float64."""
    if inputs.query is None or inputs.key is None:
        scores = chunk.of_broadcast(cast(Tensor, inputs.bias))
        return scores.to(torch.promote_types(scores.dtype, torch.float32))
    rows = chunk.of_queries(inputs.query)
    scores = torch.matmul(rows.flatten(2, 3), chunk.of_keys(inputs.key).mT).mul_(settings.scale)
    scores = scores.view(*rows.shape[:-1], settings.geometry.keys)
    if inputs.bias is not None:
        scores = scores + additive(chunk.of_broadcast(inputs.bias))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if settings.is_causal or settings.window is not None:
        positions = torch.arange(chunk.queries.start, chunk.queries.stop, device=scores.device)
        scores += additive(visible(positions, settings.geometry.keys, settings.is_causal, settings.window))
    return scores


def chunk_weights(settings: Settings, scores: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Softmax of a piece's scores and, where that is asked for, which queries see a key at all.

    The others get even weights instead of NaN; the caller keeps them out of output and gradients.
    """
    if settings.zero_fully_masked:
        seeing = scores.amax(-1, keepdim=True) > -torch.inf
        if not seeing.all():
            scores.masked_fill_(~seeing, 0.0)
            return torch.softmax(scores, -1), (seeing,)
    return torch.softmax(scores, -1), ()


def attend(settings: Settings, inputs: Inputs, dropout: Dropout, *, keep: bool) -> tuple[Tensor, Tensor, list[Piece]]:
    """Computes attention.

    Args:
        settings: Of the call.
        inputs: Of the call.
        dropout: With the whole mask.
        keep: Whether a backward pass will follow.

    Returns:
        The output ``(B, H, T_q, d_v)`` with ``output.transpose(1, 2)`` contiguous; the weights after dropout, empty
        if nobody asked; and what is kept of each piece, empty if nothing is.
    """
    batch, heads, queries, _ = settings.geometry.shape
    value = inputs.value
    output = value.new_empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)
    maps = value.new_empty(settings.geometry.shape if settings.need_weights else (0,))
    pieces = []
    for chunk in settings.chunks():
        scores = chunk_scores(settings, chunk, inputs)
        weights, seeing = chunk_weights(settings, scores)
        if keep:
            stored = () if settings.codec.needs_scores else settings.codec.encode(weights, scores=scores)
            pieces.append(Piece(stored, () if settings.replay_dropout else dropout.bits(chunk), seeing))
        weights = weights.to(value.dtype)
        factor = dropout.factor(chunk, (), value.dtype)
        weights = weights if factor is None else factor.mul_(weights)
        rows = torch.matmul(weights.flatten(2, 3), chunk.of_keys(value)).view(*weights.shape[:-1], value.shape[-1])
        for mask in seeing:
            rows, weights = rows * mask, weights * mask
        chunk.of_queries(output).copy_(rows)
        if settings.need_weights:
            chunk.of_queries(maps).copy_(weights)
    return output, maps, pieces
