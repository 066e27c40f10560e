"""Re-ranking any matcher's best candidates by a second score (MACK, Section "re-ranking")."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lit_methods.image_text.ranks import Rivals, count_rivals

Fusion = Literal["raw", "softmax", "zscore"]


def fuse(base: Tensor, other: Tensor, alpha: float, fusion: Fusion = "zscore") -> Tensor:
    """Base score plus `alpha` times the other one, over lists of k candidates.

    Args:
        base: Scores of the model to improve `(..., k)`.
        other: Scores of the same candidates by knowledge `(..., k)`.
        alpha: Weight of the other score.
        fusion: "raw" adds as they are (cosines); "softmax" turns each list into probabilities first (matching heads);
            "zscore" centres and scales each list, which suits any scale. A list without spread counts as zeros.

    Raises:
        ValueError: If shapes differ or `fusion` is unknown.
    """
    if base.shape != other.shape:
        raise ValueError(f"base is {tuple(base.shape)} and other {tuple(other.shape)}; score the same candidates.")
    if fusion == "raw":
        return base + alpha * other
    if fusion == "softmax":
        return base.softmax(dim=-1) + alpha * other.softmax(dim=-1)
    if fusion == "zscore":
        return _standardize(base) + alpha * _standardize(other)
    raise ValueError(f"fusion={fusion!r} must be 'raw', 'softmax' or 'zscore'.")


def top_candidates(scores: Tensor, top_k: int) -> Tensor:
    """Each query's best candidates, best first; equal scores in the order of their numbers.

    Args:
        scores: `(B, N)`.
        top_k: Length k of the list; N where it is larger.

    Returns:
        Candidates `(B, min(k, N))`.

    Raises:
        ValueError: If `top_k` is below 1 or a score is NaN.
    """
    if top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1.")
    if scores.isnan().any():
        raise ValueError("scores hold NaN; a query with NaN has no order.")
    length = min(top_k, scores.shape[1])
    last = scores.topk(length, dim=1).values[:, -1:]
    above, level = scores > last, scores == last
    spare = length - above.sum(dim=1, keepdim=True)
    listed = above | (level & (level.cumsum(dim=1) <= spare))
    candidates = listed.nonzero()[:, 1].view(len(scores), length)
    order = scores.gather(1, candidates).sort(dim=1, descending=True, stable=True).indices
    return candidates.gather(1, order)


def rerank(
    base: Tensor,
    other: Tensor | Callable[[Tensor], Tensor],
    top_k: int = 15,
    alpha: float = 0.15,
    fusion: Fusion = "zscore",
) -> tuple[Tensor, Tensor]:
    """Sorts each query's best candidates anew; the candidates below them keep their places.

    Args:
        base: Scores of the model to improve `(B, N)`.
        other: Scores by knowledge `(B, N)`, or a function from candidates `(B, k)` to their scores `(B, k)`.
        top_k: How many candidates are sorted anew.
        alpha: Weight of the other score; 0 keeps the base order.
        fusion: How the two are brought together, as in `fuse`.

    Returns:
        Candidates `(B, k)`, best first, and their fused scores `(B, k)`. Equal ones keep the base order.

    Raises:
        ValueError: As `fuse` and `top_candidates`.
    """
    candidates = top_candidates(base, top_k)
    chosen = base.gather(1, candidates)
    if alpha == 0:
        return candidates, chosen
    known = other(candidates) if callable(other) else other.gather(1, candidates)
    fused, order = fuse(chosen, known.to(chosen), alpha, fusion).sort(dim=1, descending=True, stable=True)
    return candidates.gather(1, order), fused


def rivals_after(base: Rivals, candidates: Tensor, fused: Tensor, query: Tensor, candidate: Tensor) -> Rivals:
    """Rivals of each query's truth after re-ranking: within the list by fused scores, below it as before.

    Args:
        base: Rivals by the base scores `(B,)`.
        candidates: Re-ranked lists `(B, k)`.
        fused: Their scores `(B, k)`, descending.
        query: Image that each query belongs to `(B,)`.
        candidate: Image that each candidate belongs to `(N,)`.
    """
    owner = candidate[candidates]
    right = owner == query.unsqueeze(1)
    truth = fused.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    greater = ((fused > truth) & ~right).sum(dim=1)
    equal = ((fused == truth) & ~right).sum(dim=1)
    listed = right.any(dim=1)
    return Rivals(torch.where(listed, greater, base.greater), torch.where(listed, equal, base.equal))


def reranked_rivals(
    base: Tensor,
    other: Tensor | Callable[[Tensor], Tensor],
    query: Tensor,
    candidate: Tensor,
    top_k: int = 15,
    alpha: float = 0.15,
    fusion: Fusion = "zscore",
) -> tuple[Rivals, Rivals]:
    """Rivals of each query's truth by the base scores alone, and after re-ranking; arguments as `rerank`."""
    truth = base.masked_fill(query.unsqueeze(1) != candidate, -torch.inf).amax(dim=1)
    before = count_rivals(base, truth, query, candidate)
    candidates, fused = rerank(base, other, top_k, alpha, fusion)
    return before, rivals_after(before, candidates, fused, query, candidate)


def _standardize(scores: Tensor) -> Tensor:
    centred = scores - scores.mean(dim=-1, keepdim=True)
    spread = centred.square().mean(dim=-1, keepdim=True).sqrt()
    level = torch.finfo(scores.dtype).eps * scores.abs().amax(dim=-1, keepdim=True)
    return torch.where(spread > level, centred / spread, torch.zeros_like(centred))
