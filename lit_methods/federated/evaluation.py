"""Accuracy of a generic model and of K personal ones, each on what its client sees."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_methods.federated.clients import Federation


class EvaluationBatch(NamedTuple):
    """A batch of a global test set, as `FederatedModule` takes it for validation and test.

    Attributes:
        inputs: Examples `(B, ...)`.
        labels: Their classes `(B,)`.
        members: Whether each example is in each client's local test set, `(B, K)` bool.
        federation: All clients' training data.
    """

    inputs: Tensor
    labels: Tensor
    members: Tensor
    federation: Federation


class FederatedAccuracy:
    """Counts correct answers over the batches of one global test set.

    A client's local accuracy is `sum_j pi_ij acc_j`, the accuracy in each class weighted by the client's own class
    frequencies: the expectation over test sets that follow its distribution, without the noise of drawing one. Beside
    it stands the accuracy on the local test set that was drawn, if batches say which examples belong to it.

    Args:
        class_counts: Training examples of each class of each client, `(K, C)`.
        device: Where to count.
    """

    def __init__(self, class_counts: Tensor, device: torch.device) -> None:
        clients, classes = class_counts.shape
        self.class_counts = class_counts.to(device, torch.float64)
        self.totals = torch.zeros(classes, dtype=torch.float64, device=device)
        self.generic = torch.zeros_like(self.totals)
        self.personal = torch.zeros(clients, classes, dtype=torch.float64, device=device)
        self.drawn = torch.zeros(clients, dtype=torch.float64, device=device)
        self.generic_drawn = torch.zeros_like(self.drawn)
        self.personal_drawn = torch.zeros_like(self.drawn)

    def add_batch(self, labels: Tensor, members: Tensor) -> None:
        """Counts the examples: labels `(B,)` and whether each is in each client's local test set, `(B, K)`."""
        self.totals += torch.bincount(labels, minlength=len(self.totals))
        self.drawn += members.sum(dim=0)

    def add_generic(self, correct: Tensor, labels: Tensor, members: Tensor) -> None:
        """Counts the generic model's correct answers `(B,)`."""
        self.generic += torch.bincount(labels, correct.to(torch.float64), len(self.totals))
        self.generic_drawn += correct.to(torch.float64) @ members.to(torch.float64)

    def add_personal(self, correct: Tensor, labels: Tensor, members: Tensor, clients: Tensor) -> None:
        """Counts correct answers `(k, B)` of the personal models of k clients `(k,)`."""
        hits = correct.to(torch.float64)
        one_hot = torch.nn.functional.one_hot(labels, len(self.totals)).to(torch.float64)
        self.personal[clients] += hits @ one_hot
        self.personal_drawn[clients] += (hits * members.T[clients]).sum(dim=1)

    def generic_figures(self) -> dict[str, float]:
        """Accuracy on the global test set, and the mean over the clients of that on their own distributions."""
        local = self._local(self.generic.expand(len(self.drawn), -1))
        return {
            "generic_acc": _ratio(self.generic.sum(), self.totals.sum()),
            "generic_acc_local": _mean(local),
            "generic_acc_drawn": _mean(self.generic_drawn / self.drawn),
        }

    def personal_figures(self) -> dict[str, float]:
        """See `personal_spread`."""
        local = self._local(self.personal)
        return personal_spread(local, self.personal_drawn / self.drawn, self.class_counts.sum(dim=1))

    def local_accuracies(self) -> Tensor:
        """Each personal model's expected accuracy on its client's distribution, `(K,)`."""
        return self._local(self.personal)

    def _local(self, correct: Tensor) -> Tensor:
        tested = self.totals > 0
        frequency = self.class_counts * tested
        accuracy = correct / self.totals.clamp_min(1)
        return (frequency * accuracy).sum(dim=1) / frequency.sum(dim=1)


def personal_spread(local: Tensor, drawn: Tensor, sizes: Tensor) -> dict[str, float]:
    """Mean, weighted mean, standard deviation and worst tenth of the personal models' accuracies.

    Args:
        local: Accuracies on the clients' distributions `(K,)`.
        drawn: Accuracies on their drawn local test sets `(K,)`.
        sizes: Their training examples `(K,)`.
    """
    known = local[~local.isnan()]
    worst = known.sort().values[: max(1, math.ceil(len(known) / 10))]
    return {
        "personal_acc": _mean(known),
        "personal_acc_weighted": _mean(local, sizes),
        "personal_acc_std": float(known.std(correction=0)) if len(known) else math.nan,
        "personal_acc_worst_tenth": _mean(worst),
        "personal_acc_drawn": _mean(drawn),
    }


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole)


def _mean(values: Tensor, weights: Tensor | None = None) -> float:
    """Mean over the values that are numbers."""
    weights = torch.ones_like(values) if weights is None else weights
    known = ~values.isnan()
    return float((values[known] * weights[known]).sum() / weights[known].sum())
