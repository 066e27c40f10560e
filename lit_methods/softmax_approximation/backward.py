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


def decoded(settings: Settings, chunk: Chunk, inputs: Inputs, piece: Piece) -> Tensor:
    """A piece's weights ``(b, h, G, t, T_k)`` as backward sees them, float32 or float64."""
    if settings.codec.needs_scores:
        return chunk_weights(settings, chunk_scores(settings, chunk, inputs))[0]
    rows = chunk.batch.stop - chunk.batch.start, chunk.heads.stop - chunk.heads.start
    queries = settings.geometry.groups, chunk.queries.stop - chunk.queries.start
    size = torch.Size((*rows, *queries, settings.geometry.keys))
    return settings.codec.decode(piece.stored, size=size, dtype=torch.promote_types(inputs.value.dtype, torch.float32))


def add_gradients(
    grads: Gradients,
    settings: Settings,
    chunk: Chunk,
    inputs: Inputs,
    piece: Piece,
    dropout: Dropout,
    output: Tensor | None,
    grad_output: Tensor,
    grad_maps: Tensor | None,
) -> None:
    """Adds one piece's share to the gradients.

    With decoded weights ``Y``, dropout factors ``Z`` and ``G = dO V^T + dP``: ``dV = (Y Z)^T dO``, and by softmax's
    backward ``dS = Y (G Z - D)`` with the row constant ``D``, exactly ``<dO, O>`` plus the weights' own share.

    Args:
        grads: What is added to.
        settings: Of the call.
        chunk: The piece.
        inputs: Of the call.
        piece: What forward left of it.
        dropout: Of the call.
        output: ``O`` for the exact row constant; None takes ``D = sum_j Y (G Z)``.
        grad_output: ``dO``, ``(B, H, T_q, d_v)``.
        grad_maps: ``dP``, ``(B, H, T_q, T_k)``, where the weights were used further.
    """
    weights = decoded(settings, chunk, inputs, piece)
    value = chunk.of_keys(inputs.value)
    grad_rows = chunk.of_queries(grad_output)
    for seeing in piece.seeing:
        grad_rows = grad_rows * seeing
    flat = grad_rows.flatten(2, 3)
    factor = dropout.factor(chunk, piece.kept, weights.dtype)
    if grads.value is not None:
        product = weights if factor is None else weights * factor
        chunk.of_keys(grads.value).add_(torch.matmul(product.to(flat.dtype).flatten(2, 3).mT, flat))
        del product
    if grads.query is None and grads.key is None and grads.bias is None:
        return
    grad = torch.matmul(flat, value.mT).view(weights.shape).to(weights.dtype)
    shared = None
    if grad_maps is not None:
        shared = chunk.of_queries(grad_maps)
        for seeing in piece.seeing:
            shared = shared * seeing
        grad += shared
    if factor is not None:
        grad *= factor
    if output is None:
        constant = (weights * grad).sum(-1, keepdim=True)
    else:
        constant = (grad_rows.to(weights.dtype) * chunk.of_queries(output)).sum(-1, keepdim=True)
        if shared is not None:
            own = weights * shared if factor is None else (weights * shared).mul_(factor)
            constant += own.sum(-1, keepdim=True)
    grad.sub_(constant).mul_(weights)
    del weights, factor
    if grads.bias is not None:
        into = chunk.of_broadcast(grads.bias)
        into.add_(grad.sum_to_size(into.shape))
    if inputs.query is None or inputs.key is None:
        return
    flat_grad = grad.to(inputs.query.dtype).flatten(2, 3)
    if grads.query is not None:
        rows = torch.matmul(flat_grad, chunk.of_keys(inputs.key)).mul_(settings.scale)
        chunk.of_queries(grads.query).copy_(rows.view(*grad.shape[:-1], rows.shape[-1]))
    if grads.key is not None:
        query = chunk.of_queries(inputs.query).flatten(2, 3)
        chunk.of_keys(grads.key).add_(torch.matmul(flat_grad.mT, query), alpha=settings.scale)


def backpropagate(
    grads: Gradients,
    settings: Settings,
    inputs: Inputs,
    pieces: list[Piece],
    dropout: Dropout,
    output: Tensor | None,
    grad_output: Tensor | None,
    grad_maps: Tensor | None,
) -> None:
    """Adds the gradients of all pieces; arguments as of :func:`add_gradients`."""
    if grad_output is None:
        batch, heads, queries, _ = settings.geometry.shape
        grad_output = inputs.value.new_zeros(()).expand(batch, heads, queries, inputs.value.shape[-1])
    for chunk, piece in zip(settings.chunks(), pieces, strict=True):
        add_gradients(grads, settings, chunk, inputs, piece, dropout, output, grad_output, grad_maps)
