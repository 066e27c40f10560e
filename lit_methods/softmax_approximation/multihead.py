"""The way into ``nn.MultiheadAttention``, and so into torch's transformer layers: a class with another forward."""

from __future__ import annotations

from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_methods.softmax_approximation.approximation import Approximation


class MultiheadRoute:
    """Exchanges the class of attention modules for one with our forward, for as long as it is attached.

    Parameters, buffers, hooks and keys of the state dict stay. In evaluation and without gradients the module's own
    forward runs, torch's fast path included. A copy of the model that is made meanwhile runs its own forward too.

    Args:
        selected: Names by module; each for which :func:`is_exchangeable` holds.
        approximation: What to do there.
    """

    name = "multihead"

    def __init__(self, selected: dict[nn.Module, str], approximation: Approximation) -> None:
        self.approximation = approximation
        self.names = WeakKeyDictionary(selected)
        for module in selected:
            _ROUTES[module] = self
            module.__class__ = _exchanged(type(module))  # type: ignore[arg-type]  # of functools' Hashable

    def detach(self) -> None:
        """Gives each module its own class back."""
        for module in list(self.names):
            if _ROUTES.pop(module, None) is not None:
                module.__class__ = type(module).__mro__[1]


_ROUTES: WeakKeyDictionary[nn.Module, MultiheadRoute] = WeakKeyDictionary()


def is_exchangeable(module: nn.Module) -> bool:
    """Whether a module is a multi-head attention of torch that computes what torch's does."""
    return isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward


@cache
def _exchanged(kind: type[nn.Module]) -> type[nn.Module]:
    def as_own_kind(self: nn.Module, protocol: Any) -> Any:
        return _bare, (kind,), object.__getstate__(self)

    body = {"forward": forward, "__reduce_ex__": as_own_kind, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), body)


def _bare(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


def forward(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``nn.MultiheadAttention.forward``, argument by argument."""
    own = partial(
        nn.MultiheadAttention.forward,
        self,
        query,
        key,
        value,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        average_attn_weights=average_attn_weights,
        is_causal=is_causal,
    )
    route = _ROUTES.get(self)
    if route is None or not torch.is_grad_enabled() or query.is_nested:
        return own()
    if is_causal and attn_mask is None:
        raise RuntimeError(
            "is_causal=True is a hint about attn_mask, which is missing: pass"
            " nn.Transformer.generate_square_subsequent_mask(T) beside it."
        )
    batched, shared = query.dim() == 3, query is key and key is value
    if not batched:
        query, key, value = (tensor.unsqueeze(0) for tensor in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    elif not self.batch_first:
        query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    projected = _projected(self, query, key, value, shared)
    heads = (
        _split(projected[0], self.num_heads),
        _split(projected[1], self.num_heads),
        _split(projected[2], self.num_heads),
    )
    causal = is_causal and key_padding_mask is None and not need_weights
    mask = _merged(key_padding_mask, None if causal else attn_mask, heads[0])
    heads, mask = _with_extra_keys(self, heads, mask)
    dropout_p = self.dropout if self.training else 0.0
    output, weights = route.approximation.attend(
        route.names[self],
        route.name,
        partial(_former, *heads, mask=mask, dropout_p=dropout_p, is_causal=causal, need_weights=need_weights),
        *heads,
        mask=mask,
        is_causal=causal,
        dropout_p=dropout_p,
        need_weights=need_weights,
        zero_fully_masked=not need_weights,
    )
    # laid out as torch lays it out, time first: dropout further on draws in the order of the memory
    output = self.out_proj(output.transpose(1, 2).flatten(2)).transpose(0, 1).contiguous()
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    if not batched:
        return output.squeeze(1), None if weights is None else weights.squeeze(0)
    return output.transpose(0, 1) if self.batch_first else output, weights


def _projected(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, shared: bool) -> list[Tensor]:
    """Query, key and value projections ``(B, T, D)``, one product where the inputs are one tensor."""
    bias = module.in_proj_bias
    if module.in_proj_weight is None:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]
    if shared:
        return list(F.linear(query, module.in_proj_weight, bias).chunk(3, -1))
    weights = module.in_proj_weight.chunk(3)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]


def _split(projected: Tensor, heads: int) -> Tensor:
    return projected.view(*projected.shape[:-1], heads, -1).transpose(1, 2)


def _merged(padding: Tensor | None, mask: Tensor | None, query: Tensor) -> Tensor | None:
    """Both masks of torch (True: ignore, or floating) as one of ours (True: attend, or floating)."""
    if mask is not None:
        mask = mask if mask.dim() == 2 else mask.view(query.shape[0], query.shape[1], *mask.shape[1:])
    if padding is not None:
        padding = padding[:, None, None, :]
    masks = [given for given in (mask, padding) if given is not None]
    if all(given.dtype == torch.bool for given in masks):
        merged = [~given for given in masks]
        return merged[0] & merged[1] if len(merged) == 2 else merged[0] if merged else None
    added = [
        torch.zeros(given.shape, dtype=query.dtype, device=given.device).masked_fill_(given, -torch.inf)
        if given.dtype == torch.bool
        else given
        for given in masks
    ]
    return added[0] + added[1] if len(added) == 2 else added[0]


def _with_extra_keys(
    module: nn.MultiheadAttention, heads: tuple[Tensor, Tensor, Tensor], mask: Tensor | None
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
    """Appends the learned key (``add_bias_kv``) and the key of zeros (``add_zero_attn``), which no mask hides."""
    query, key, value = heads
    extra = 0
    if module.bias_k is not None and module.bias_v is not None:
        biases = (_split(bias.expand(len(key), 1, -1), module.num_heads) for bias in (module.bias_k, module.bias_v))
        key, value = (torch.cat([old, bias], 2) for old, bias in zip((key, value), biases, strict=True))
        extra += 1
    if module.add_zero_attn:
        key, value = (F.pad(tensor, (0, 0, 0, 1)) for tensor in (key, value))
        extra += 1
    if mask is not None and extra:
        mask = F.pad(mask, (0, extra), value=mask.dtype == torch.bool)
    return (query, key, value), mask


def _former(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """What torch computes from the same heads."""
    if not need_weights:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p, is_causal), None
    scores = query * query.shape[-1] ** -0.5 @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = F.dropout(torch.softmax(scores, -1), dropout_p)
    return weights @ value, weights
