"""Attention that keeps a codec's tensors for backward instead of its weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_methods.softmax_approximation._chunks import Geometry, default_elements
from lit_methods.softmax_approximation._masks import additive, visible
from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.forward import Inputs, Settings, attend
from lit_methods.softmax_approximation.node import Attention, drawn_dropout
from lit_methods.softmax_approximation.registry import as_codec

# Compiled, the node would be traced open, and the compiler might keep the dense weights for backward.
_with_grad: Callable[..., tuple[Tensor, Tensor | None]]
_with_grad = torch.compiler.disable(Attention.apply)  # type: ignore[no-untyped-call]  # torch does not type it


def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    codec: str | Codec = "log4",
    mask: Tensor | None = None,
    is_causal: bool = False,
    window: int | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    need_weights: bool = False,
    exact_row_constant: bool = True,
    zero_fully_masked: bool = False,
    replay_dropout: bool = False,
    chunk_elements: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention, exact in forward, whose backward sees what the codec kept of the weights.

    Where no gradient is asked for it does no codec work: it is ``F.scaled_dot_product_attention``, or the same
    forward pass if there is dropout (so that the first pass of activation checkpointing draws what the second one
    does) or the weights are asked for.

    Args:
        query: ``(B, H, T_q, d)``, of any memory layout.
        key: ``(B, H_kv, T_k, d)``; ``H`` must be a multiple of ``H_kv`` (grouped queries share a key head).
        value: ``(B, H_kv, T_k, d_v)``.
        codec: What to keep of the weights: a codec, or the name of one for its default settings.
        mask: Broadcastable to ``(B, H, T_q, T_k)``; boolean (True: attend) or floating (added to the scaled scores;
            may require a gradient, as learned biases do).
        is_causal: Query ``i`` sees keys ``j <= i``, both counted from the first.
        window: Query ``i`` sees keys with ``|i - j| < window`` only.
        dropout_p: Probability that a weight is dropped; pass 0 in evaluation.
        scale: Factor on the scores; ``None`` is ``d ** -0.5``.
        need_weights: Whether to return the weights too.
        exact_row_constant: Whether softmax's backward takes its row constant from the output, where it is exact,
            instead of from the codec's weights.
        zero_fully_masked: What queries get whose keys are all masked by ``-inf`` or False: zeros, as from
            ``F.scaled_dot_product_attention``, or NaN, as from softmax. (Masked by the smallest float they attend
            evenly to all keys, as from softmax.)
        replay_dropout: Whether to keep the generator's state and draw dropout's mask again in backward, instead of
            one bit a weight; on CPUs drawing is slow.
        chunk_elements: Most weights that are dense at a time; ``None`` chooses by the device.

    Returns:
        The output ``(B, H, T_q, d_v)``, laid out so that ``output.transpose(1, 2)`` is contiguous, and the weights
        ``(B, H, T_q, T_k)`` after dropout or None. Gradients flow through both.

    Guarantees:
        - Output and weights are those of eager softmax attention; with the same random state dropout's mask is that
          of eager, and the default generator moves as in eager. Backward leaves it alone.
        - Masked keys have weight 0 and gradient 0.
        - Gradients are those of eager if the codec is exact. If it is not, they see the codec's weights in place of the
          true ones, and nothing else is approximate.
        - Between the passes only inputs, output, the codec's tensors and dropout's bits are alive.

    Raises:
        ValueError: On shapes or settings that do not fit together.
        TypeError: On dtypes that do not fit together.
        RuntimeError: In backward with ``create_graph=True``.
    """
    query, key, value = _autocast(query), _autocast(key), _autocast(value)
    geometry = _geometry(query, key, value)
    bias = None if mask is None else _broadcast(mask, geometry)
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 key, but is {window!r}.")
    settings = Settings(
        geometry=geometry,
        codec=as_codec(codec),
        dropout_p=_probability(dropout_p),
        need_weights=need_weights,
        exact_row_constant=exact_row_constant,
        replay_dropout=replay_dropout,
        chunk_elements=_chunk_elements(chunk_elements, query.device),
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        is_causal=is_causal,
        window=window,
        zero_fully_masked=zero_fully_masked,
    )
    if _needs_grad(query, key, value, bias):
        return _with_grad(query, key, value, bias, settings)
    if dropout_p > 0 or need_weights:
        return _without_grad(settings, Inputs(query, key, value, bias))
    return _fused(settings, query, key, value, bias), None


def softmax_value_product(
    scores: Tensor,
    value: Tensor,
    *,
    codec: str | Codec = "log4",
    dropout_p: float = 0.0,
    need_weights: bool = False,
    exact_row_constant: bool = True,
    replay_dropout: bool = False,
    chunk_elements: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The same from scores of any origin: additive, disentangled or relative attention, graphs, pointers.

    Args:
        scores: ``(B, H, T_q, T_k)``, scaled and masked.
        value: ``(B, H_kv, T_k, d_v)``; ``H`` must be a multiple of ``H_kv``.
        codec: As of :func:`softmax_attention`, but for those that need query and key.
        dropout_p: Probability that a weight is dropped.
        need_weights: Whether to return the weights too.
        exact_row_constant: As of :func:`softmax_attention`.
        replay_dropout: As of :func:`softmax_attention`.
        chunk_elements: As of :func:`softmax_attention`.

    Returns:
        Output and weights as of :func:`softmax_attention`.

    Raises:
        ValueError: On shapes or settings that do not fit together, or a codec that needs query and key.
        RuntimeError: In backward with ``create_graph=True``.
    """
    chosen = as_codec(codec)
    if chosen.needs_scores:
        raise ValueError(
            f"codec {chosen.name!r} computes scores again from query and key, but softmax_value_product has only the"
            " scores: use softmax_attention, or take 'merged' (exact) or 'log8'."
        )
    if scores.ndim != 4 or value.ndim != 4 or scores.shape[0] != value.shape[0] or scores.shape[3] != value.shape[2]:
        raise ValueError(
            f"scores must be (B, H, T_q, T_k) and value (B, H_kv, T_k, d_v), but are {tuple(scores.shape)} and"
            f" {tuple(value.shape)}."
        )
    value = _autocast(value)
    settings = Settings(
        geometry=Geometry(len(scores), value.shape[1], _groups(scores, value), *scores.shape[2:]),
        codec=chosen,
        dropout_p=_probability(dropout_p),
        need_weights=need_weights,
        exact_row_constant=exact_row_constant,
        replay_dropout=replay_dropout,
        chunk_elements=_chunk_elements(chunk_elements, scores.device),
    )
    if _needs_grad(scores, value):
        return _with_grad(None, None, value, scores, settings)
    return _without_grad(settings, Inputs(None, None, value, scores))


def _autocast(tensor: Tensor) -> Tensor:
    """The tensor as a matrix product would take it."""
    if not torch.is_autocast_enabled(tensor.device.type) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _without_grad(settings: Settings, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    with torch.no_grad(), torch.autocast(inputs.value.device.type, enabled=False):
        output, maps, _ = attend(settings, inputs, drawn_dropout(settings, inputs.value), keep=False)
    return output, maps if settings.need_weights else None


def _fused(settings: Settings, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's own attention, with NaN for queries that see no key unless zeros are asked for."""
    plain_causal = settings.is_causal and settings.window is None and mask is None
    if not plain_causal and (settings.is_causal or settings.window is not None):
        positions = torch.arange(settings.geometry.queries, device=query.device)
        seen = visible(positions, settings.geometry.keys, settings.is_causal, settings.window)
        mask = seen if mask is None else seen & mask if mask.dtype == torch.bool else additive(seen) + mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=plain_causal,
        scale=settings.scale,
        enable_gqa=settings.geometry.groups > 1,
    )
    if mask is not None and not settings.zero_fully_masked:
        blind = ~mask.any(-1, keepdim=True) if mask.dtype == torch.bool else mask.amax(-1, keepdim=True).isneginf()
        if blind.any():
            output = output.masked_fill(blind, torch.nan)
    return output


def _geometry(query: Tensor, key: Tensor, value: Tensor) -> Geometry:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"query, key and value must be (B, heads, T, d), but are of shapes {shapes}.")
    if len(query) != len(key) or query.shape[3] != key.shape[3] or key.shape[:3] != value.shape[:3]:
        raise ValueError(f"Sizes of batch, head or key do not agree: {shapes}.")
    if not query.dtype == key.dtype == value.dtype or not query.is_floating_point():
        raise TypeError(f"query, key and value must share a floating dtype: {query.dtype}, {key.dtype}, {value.dtype}.")
    return Geometry(len(query), key.shape[1], _groups(query, key), query.shape[2], key.shape[2])


def _groups(query: Tensor, key: Tensor) -> int:
    if key.shape[2] == 0:
        raise ValueError("There are no keys: softmax over nothing has no value.")
    groups, odd = divmod(query.shape[1], key.shape[1])
    if odd:
        raise ValueError(f"{query.shape[1]} query heads cannot share {key.shape[1]} key heads evenly.")
    return groups


def _broadcast(mask: Tensor, geometry: Geometry) -> Tensor:
    """The mask with four dimensions, sizes of 1 left as they are."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"mask must be boolean (True: attend) or floating (added to the scores), but is {mask.dtype}.")
    bias = mask[(None,) * max(0, 4 - mask.ndim)]
    if bias.ndim > 4 or any(size not in (1, full) for size, full in zip(bias.shape, geometry.shape, strict=True)):
        raise ValueError(f"mask of shape {tuple(mask.shape)} cannot be broadcast to {geometry.shape} (B, H, T_q, T_k).")
    return bias


def _probability(dropout_p: float) -> float:
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p must lie in [0, 1], but is {dropout_p!r}.")
    return dropout_p


def _chunk_elements(elements: int | None, device: torch.device) -> int:
    if elements is not None and elements < 1:
        raise ValueError(f"chunk_elements must be at least 1, but is {elements!r}.")
    return default_elements(device) if elements is None else elements
