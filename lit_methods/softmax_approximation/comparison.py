"""The gradient of one attention call, compared with the exact one while backward passes by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_methods.softmax_approximation._random import get_state, unmoved
from lit_methods.softmax_approximation.attention import softmax_attention
from lit_methods.softmax_approximation.codec import Codec
from lit_methods.softmax_approximation.exact import Recompute
from lit_methods.softmax_approximation.meters import ErrorMeter, paused


def watch_gradient(
    errors: ErrorMeter, codec: Codec, call: tuple[Tensor, Tensor, Tensor], settings: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Computes attention, and in its backward pass adds to a meter how far its gradients are from the exact ones.

    Both gradients are computed apart, from the same output gradient and the same dropout mask; the training's own
    backward pass, random numbers and the codec's state stay as they are.

    Args:
        errors: Takes gradients of query, key and value together, and the weights of the first batch element.
        codec: Of the call.
        call: Query, key and value of :func:`~.attention.softmax_attention`.
        settings: Its keywords.

    Returns:
        Its results.
    """
    device = call[0].device
    state = get_state(device)
    codec_state = codec.state_dict()
    output, weights = softmax_attention(*call, codec=codec, **settings)
    if not output.requires_grad:
        return output, weights
    mask = settings["mask"]
    apart = settings | {"mask": None if mask is None else mask.detach(), "need_weights": False}
    inputs = [tensor.detach() for tensor in call]

    def gradients(of: Codec, grad: Tensor) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        with unmoved(device, state), torch.enable_grad():
            result, _ = softmax_attention(leaves[0], leaves[1], leaves[2], codec=of, **apart)
        return torch.autograd.grad(result, leaves, grad)

    def compare(grad: Tensor) -> None:
        now = codec.state_dict()
        codec.load_state_dict(codec_state)
        with paused():
            errors.add(gradients(Recompute(), grad), gradients(codec, grad))
            _add_weights(errors, codec, [tensor[:1] for tensor in inputs], apart)
        codec.load_state_dict(now)

    output.register_hook(compare)  # type: ignore[no-untyped-call]  # torch does not type it
    return output, weights


def _add_weights(errors: ErrorMeter, codec: Codec, call: list[Tensor], settings: dict[str, Any]) -> None:
    mask = settings["mask"]
    mask = mask[:1] if mask is not None and mask.ndim == 4 else mask
    with torch.no_grad():
        settings = settings | {"mask": mask, "dropout_p": 0.0, "need_weights": True}
        _, weights = softmax_attention(call[0], call[1], call[2], codec=codec, **settings)
    if weights is None or codec.needs_scores:
        return
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    errors.add_weights(weights, codec.decode(codec.encode(weights), size=weights.shape, dtype=weights.dtype))
