"""The one autograd node from query, key and value to the output."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lit_methods.softmax_approximation._random import get_state
from lit_methods.softmax_approximation.backward import BackwardPass, Gradients
from lit_methods.softmax_approximation.dropout import Dropout, draw_kept, draw_kept_again
from lit_methods.softmax_approximation.forward import Inputs, Piece, Settings, attend


def drawn_dropout(settings: Settings, value: Tensor) -> Dropout:
    """Dropout of a call, its mask drawn from the default generator if there is one to draw."""
    kept = draw_kept(settings.geometry.shape, settings.dropout_p, value) if settings.dropout_p > 0 else None
    return Dropout.of(settings.dropout_p, value.dtype, kept)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class Attention(torch.autograd.Function):
    """Exact attention forward; backward from what the codec kept.

    It keeps its inputs, which their makers keep anyway, its output, which the next layer keeps anyway, and of all
    that is quadratic in the length only the codec's tensors and dropout's mask in bits.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor | None, key: Tensor | None, value: Tensor, bias: Tensor | None, settings: Settings
    ) -> tuple[Tensor, Tensor | None]:
        """Computes output and, if asked for, weights."""
        inputs = Inputs(query, key, value, bias)
        replayed = settings.replay_dropout and settings.dropout_p > 0
        state = get_state(value.device) if replayed else None
        with torch.autocast(value.device.type, enabled=False):
            output, maps, pieces = attend(settings, inputs, drawn_dropout(settings, value), keep=True)
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        ctx.counts = [piece.counts for piece in pieces]
        ctx.bias_shape = None if bias is None else bias.shape
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (query, key, value, bias)]
        ctx.save_for_backward(
            query,
            key,
            value,
            bias if settings.codec.needs_scores else None,
            output if settings.exact_row_constant else None,
            state,
            *(tensor for piece in pieces for tensor in piece.tensors),
        )
        return output, maps if settings.need_weights else None

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_maps: Tensor | None) -> tuple[Tensor | None, ...]:
        """Computes the gradients of query, key, value and bias."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "softmax_attention has no second derivative: its backward sees the codec's weights, not the true ones."
                " Leave out create_graph=True, or use eager attention in the pass that needs it."
            )
        settings: Settings = ctx.settings
        query, key, value, bias, output, state, *rest = ctx.saved_tensors
        tensors = iter(rest)
        pieces = [Piece(*(tuple(islice(tensors, count)) for count in counts)) for counts in ctx.counts]
        kept = None
        if state is not None:
            kept = draw_kept_again(settings.geometry.shape, settings.dropout_p, value, state)
        dropout = Dropout.of(settings.dropout_p, value.dtype, kept)
        needs_query, needs_key, needs_value, needs_bias, _ = ctx.needs_input_grad
        empty = torch.empty_like if pieces else torch.zeros_like
        query_sum, key_sum, value_sum = (
            empty(tensor, dtype=_sum_dtype(tensor.dtype)) if needed else None
            for tensor, needed in zip((query, key, value), (needs_query, needs_key, needs_value), strict=True)
        )
        bias_sum = value.new_zeros(ctx.bias_shape, dtype=_sum_dtype(ctx.dtypes[3])) if needs_bias else None
        if grad_output is None:
            grad_output = value.new_zeros(()).expand(*settings.geometry.shape[:3], value.shape[-1])
        grads = Gradients(query_sum, key_sum, value_sum, bias_sum)
        run = BackwardPass(settings, Inputs(query, key, value, bias), dropout, output, grad_output, grad_maps)
        with torch.autocast(value.device.type, enabled=False):
            for chunk, piece in zip(settings.chunks(), pieces, strict=True):
                run.add(grads, chunk, piece)
        found = (grads.query, grads.key, grads.value, grads.bias)
        return *(None if grad is None else grad.to(dtype) for grad, dtype in zip(found, ctx.dtypes, strict=True)), None
