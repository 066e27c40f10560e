"""Attention that keeps a codec's tensors for backward instead of its weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.registry import as_codec


def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    codec: str | Codec = "recompute",
    mask: Tensor | None = None,
    is_causal: bool = False,
    window: int | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    need_weights: bool = False,
    exact_row_constant: bool = True,
    chunk_elements: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention, exact in forward, whose backward sees what the codec kept of the weights.

    Args:
        query: ``(B, H, T_q, d)``, of any memory layout.
        key: ``(B, H_kv, T_k, d)``; ``H`` must be a multiple of ``H_kv`` (grouped queries share a key head).
        value: ``(B, H_kv, T_k, d_v)``.
        codec: What to keep of the weights: a codec or its name.
        mask: Broadcastable to ``(B, H, T_q, T_k)``; boolean (True: attend) or floating (added to the scaled scores;
            may require a gradient, for learned biases).
        is_causal: Query ``i`` sees keys ``j <= i``.
        window: Query ``i`` sees keys with ``|i - j| < window`` only.
        dropout_p: Probability that a weight is dropped; 0 in evaluation.
        scale: Factor on the scores; ``None`` is ``d ** -0.5``.
        need_weights: Whether to return the weights too.
        exact_row_constant: Whether softmax's backward takes its row constant from the output instead of the codec.
        chunk_elements: Most weights that are dense at a time; ``None`` chooses by the device.

    Returns:
        The output ``(B, H, T_q, d_v)``, laid out so that ``output.transpose(1, 2)`` is contiguous, and the weights
        ``(B, H, T_q, T_k)`` after dropout (differentiable through the codec), or None.

    Raises:
        ValueError: On shapes or settings that do not fit together.
    """
    as_codec(codec)
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal or window is not None:
        distance = torch.arange(scores.shape[-2])[:, None] - torch.arange(scores.shape[-1])
        seen = (distance >= 0 if is_causal else distance > -(window or 0)) & (distance < (window or math.inf))
        scores = scores.masked_fill(~seen, -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = F.dropout(torch.softmax(scores, -1), dropout_p)
    output = torch.einsum("bhqk,bhkd->bqhd", weights, value).transpose(1, 2)
    return output, weights if need_weights else None


def softmax_value_product(
    scores: Tensor,
    value: Tensor,
    *,
    codec: str | Codec = "recompute",
    dropout_p: float = 0.0,
    need_weights: bool = False,
    exact_row_constant: bool = True,
    chunk_elements: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The same from scores of any origin (additive, disentangled or relative attention, graphs, pointers).

    Args:
        scores: ``(B, H, T_q, T_k)``, scaled and masked.
        value: ``(B, H_kv, T_k, d_v)``; ``H`` must be a multiple of ``H_kv``.
        codec: As above; ``recompute`` is refused, for nothing is known of how the scores came about.
        dropout_p: Probability that a weight is dropped.
        need_weights: Whether to return the weights too.
        exact_row_constant: As above.
        chunk_elements: As above.

    Returns:
        Output and weights as of :func:`softmax_attention`.

    Raises:
        ValueError: On shapes or settings that do not fit together.
    """
    as_codec(codec)
    weights = F.dropout(torch.softmax(scores, -1), dropout_p)
    value = value.repeat_interleave(scores.shape[1] // value.shape[1], 1)
    output = torch.einsum("bhqk,bhkd->bqhd", weights, value).transpose(1, 2)
    return output, weights if need_weights else None
