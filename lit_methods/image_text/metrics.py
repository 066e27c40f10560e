"""Recall at K, median and mean rank of a retrieval, from counts of rivals."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_methods.image_text.ranks import Rivals

Ties = Literal["mean", "pessimistic", "optimistic"]


class RetrievalRanks(Metric):
    """Recall at K in percent: the share of queries whose best right candidate is among the first K.

    Any right candidate counts, as in the literature, where an image has five captions; torchmetrics' RetrievalRecall
    is the share of all right ones instead. Recalls, median and mean rank of each fold are averaged over the folds.

    Args:
        ks: The lengths K.
        ties: Rank of a truth that ties with wrong candidates: the mean of the tied places, the last, or the first.

    Guarantees:
        - A query counts once, also where a sampler of several processes repeats it.
        - Ranks do not depend on the order of candidates.

    Raises:
        ValueError: If `ks` is empty or holds a value below 1, or `ties` is unknown.
    """

    full_state_update = False
    query: list[Tensor]
    rank: list[Tensor]
    fold: list[Tensor]

    def __init__(self, ks: Sequence[int] = (1, 5, 10), ties: Ties = "mean") -> None:
        super().__init__()
        if not ks or min(ks) < 1:
            raise ValueError(f"ks={tuple(ks)} must hold lengths of at least 1.")
        if ties not in ("mean", "pessimistic", "optimistic"):
            raise ValueError(f"ties={ties!r} must be 'mean', 'pessimistic' or 'optimistic'.")
        self.ks, self.ties = tuple(ks), ties
        for name in ("query", "rank", "fold"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, rivals: Rivals, query: Tensor, fold: Tensor | None = None) -> None:
        """Adds queries.

        Args:
            rivals: Wrong candidates above and level with the truth, each `(B,)`.
            query: Number of each query `(B,)`.
            fold: Fold of each query `(B,)`; None for one fold.
        """
        share = {"mean": 0.5, "pessimistic": 1.0, "optimistic": 0.0}[self.ties]
        self.rank.append(1 + rivals.greater + share * rivals.equal)
        self.query.append(query.to(rivals.greater.device))
        self.fold.append(torch.zeros_like(self.query[-1]) if fold is None else fold.to(rivals.greater.device))

    def compute(self) -> dict[str, Tensor]:
        """`R@K` in percent for each K, `medR` and `meanR`.

        Raises:
            ValueError: If no query was added.
        """
        if not len(self.query):
            raise ValueError("No query was ranked; update RetrievalRanks before compute.")
        query = dim_zero_cat(self.query)
        order = query.sort(stable=True).indices
        first = torch.ones_like(query, dtype=torch.bool)
        first[1:] = query[order].diff() != 0
        rank, fold = dim_zero_cat(self.rank)[order][first], dim_zero_cat(self.fold)[order][first]
        parts = [rank[fold == number] for number in torch.unique(fold)]
        found = {
            f"R@{k}": torch.stack([100 * (part <= k).double().mean() for part in parts]).mean().float() for k in self.ks
        }
        found["medR"] = torch.stack([part.quantile(0.5) for part in parts]).mean()
        found["meanR"] = torch.stack([part.mean() for part in parts]).mean()
        return found


def recall_sum(*directions: dict[str, Tensor]) -> Tensor:
    """Sum of the recalls of all directions, rSum: 600 at most for two directions and three K."""
    return torch.stack([value for found in directions for name, value in found.items() if name.startswith("R@")]).sum()
