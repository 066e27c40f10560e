"""The backward pass, piece by piece, from decoded weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_methods.softmax_approximation._chunks import Chunk
from lit_methods.softmax_approximation.dropout import Dropout
from lit_methods.softmax_approximation.forward import Inputs, Piece, Settings, chunk_scores, chunk_weights


@dataclass
class Gradients:
    """Gradients of the inputs in their shapes, summed in float32 at least; None where nobody asked."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    bias: Tensor | None


def _put(into: Tensor, gradient: Tensor, chunk: Chunk) -> None:
    """Writes a gradient of keys or values, or adds it where pieces of earlier queries came before."""
    if chunk.queries.start == 0:
        into.copy_(gradient)
    else:
        into.add_(gradient)


@dataclass(frozen=True)
class BackwardPass:
    """One backward pass of a call.

    With decoded weights ``Y``, dropout's factors ``Z`` and ``G = dO V^T + dP``: ``dV = (Y Z)^T dO`` and, by softmax's
    backward, ``dS = Y (G Z - D)``. The row constant ``D`` is ``<dO, O>`` exactly, plus the decoded weights' product
    with ``Z dP`` where the weights were used further.

    Attributes:
        settings: Of the call.
        inputs: Of the call.
        dropout: Of the call.
        output: ``O`` for the exact row constant; None takes ``D = sum_j Y (G Z)``.
        grad_output: ``dO``, ``(B, H, T_q, d_v)``.
        grad_maps: ``dP``, ``(B, H, T_q, T_k)``; None if the weights were not used further.
    """

    settings: Settings
    inputs: Inputs
    dropout: Dropout
    output: Tensor | None
    grad_output: Tensor
    grad_maps: Tensor | None

    def add(self, grads: Gradients, chunk: Chunk, piece: Piece) -> None:
        """Adds one piece's share to the gradients."""
        weights = self._decoded(chunk, piece)
        factor = self.dropout.factor(chunk, piece.kept, weights.dtype)
        rows = self._seen(chunk.of_queries(self.grad_output), piece)
        flat = rows.flatten(2, 3).contiguous()
        if grads.value is not None:
            product = weights if factor is None else weights * factor
            _put(chunk.of_keys(grads.value), product.to(flat.dtype).flatten(2, 3).mT @ flat, chunk)
            del product
        if grads.query is None and grads.key is None and grads.bias is None:
            return
        grad = (flat @ chunk.of_keys(self.inputs.value).contiguous().mT).view(weights.shape).to(weights.dtype)
        further = None if self.grad_maps is None else self._seen(chunk.of_queries(self.grad_maps), piece)
        if further is not None:
            grad += further
        if factor is not None:
            grad *= factor
        grad -= self._row_constant(chunk, weights, factor, rows, grad, further)
        grad *= weights
        del weights, factor
        if grads.bias is not None:
            into = chunk.of_broadcast(grads.bias)
            into += grad.sum_to_size(into.shape)
        self._add_to_query_and_key(grads, chunk, grad)

    def _decoded(self, chunk: Chunk, piece: Piece) -> Tensor:
        """The weights ``(b, h, G, t, T_k)`` as backward sees them, float32 or float64."""
        if self.settings.codec.needs_scores:
            return chunk_weights(self.settings, chunk_scores(self.settings, chunk, self.inputs))[0]
        dtype = torch.promote_types(self.inputs.value.dtype, torch.float32)
        return self.settings.codec.decode(piece.stored, size=chunk.shape, dtype=dtype)

    def _seen(self, grad: Tensor, piece: Piece) -> Tensor:
        """A gradient without the queries that see no key."""
        return grad * piece.seeing[0] if piece.seeing else grad

    def _row_constant(
        self, chunk: Chunk, weights: Tensor, factor: Tensor | None, rows: Tensor, grad: Tensor, further: Tensor | None
    ) -> Tensor:
        """``D``, shape ``(b, h, G, t, 1)``."""
        if self.output is None:
            return (weights * grad).sum(-1, keepdim=True)
        constant = (rows.to(weights.dtype) * chunk.of_queries(self.output)).sum(-1, keepdim=True)
        if further is not None:
            own = weights * further
            constant += (own if factor is None else own.mul_(factor)).sum(-1, keepdim=True)
        return constant

    def _add_to_query_and_key(self, grads: Gradients, chunk: Chunk, grad_scores: Tensor) -> None:
        query, key = self.inputs.query, self.inputs.key
        if query is None or key is None:
            return
        flat = grad_scores.to(query.dtype).flatten(2, 3)
        if grads.query is not None:
            rows = (flat @ chunk.of_keys(key)).mul_(self.settings.scale)
            chunk.of_queries(grads.query).copy_(rows.view(*grad_scores.shape[:-1], rows.shape[-1]))
        if grads.key is not None:
            rows = (flat.mT @ chunk.of_queries(query).flatten(2, 3)).mul_(self.settings.scale)
            _put(chunk.of_keys(grads.key), rows, chunk)
