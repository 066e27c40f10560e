"""Masks as something to add to scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def additive(mask: Tensor) -> Tensor:
    """Boolean masks (True: attend) become 0 and ``-inf``; floating ones stay as they are."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -math.inf)


def visible(queries: Tensor, keys: int, is_causal: bool, window: int | None) -> Tensor:
    """Whether the query at a position sees a key, by position alone.

    Args:
        queries: Positions ``(t,)``, counted from the first key.
        keys: ``T_k``.
        is_causal: Query ``i`` sees keys ``j <= i``.
        window: Query ``i`` sees keys with ``|i - j| < window``; None for all.

    Returns:
        Boolean ``(t, T_k)``.
    """
    distance = queries[:, None] - torch.arange(keys, device=queries.device)
    seen = distance >= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
    return seen if window is None else seen & (distance.abs() < window)
