"""Ranks by counting: how many rivals score above the truth, so that no matrix needs to be sorted or held."""

from typing import NamedTuple

import torch
from torch import Tensor


class Rivals(NamedTuple):
    """Wrong candidates of each query `(B,)`: those that score above its best right one, and those that tie with it."""

    greater: Tensor
    equal: Tensor


def best_truth(scores: Tensor, query: Tensor, candidate: Tensor) -> Tensor:
    """Best score among each query's right candidates.

    Args:
        scores: `(B, N)`.
        query: Image that each query belongs to `(B,)`.
        candidate: Image that each candidate belongs to `(N,)`; right where the two agree.

    Returns:
        `(B,)`, -inf where these candidates hold no right one.
    """
    return scores.masked_fill(query.unsqueeze(1) != candidate, -torch.inf).amax(dim=1)


def count_rivals(
    scores: Tensor,
    truth: Tensor,
    query: Tensor,
    candidate: Tensor,
    query_fold: Tensor | None = None,
    candidate_fold: Tensor | None = None,
) -> Rivals:
    """Counts wrong candidates above and level with the truth; counts of disjoint candidates add up.

    Args:
        scores: `(B, N)`.
        truth: Best score of each query's right candidates `(B,)`.
        query: Image that each query belongs to `(B,)`.
        candidate: Image that each candidate belongs to `(N,)`.
        query_fold: Fold of each query `(B,)`; only candidates of the same fold are rivals.
        candidate_fold: Fold of each candidate `(N,)`.
    """
    rival = query.unsqueeze(1) != candidate
    if query_fold is not None and candidate_fold is not None:
        rival &= query_fold.unsqueeze(1) == candidate_fold
    level = truth.unsqueeze(1)
    return Rivals(((scores > level) & rival).sum(dim=1), ((scores == level) & rival).sum(dim=1))
