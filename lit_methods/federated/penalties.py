"""Terms of a local objective that depend on weights alone, with their gradients in closed form."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_methods.federated.functional import SpectralPlan, SpectralTarget, spectral_distribution
from lit_methods.federated.layout import cut, gather


class Penalty(ABC):
    """A term for each of K clients; `rows` says which of them the given weights belong to."""

    @abstractmethod
    def take(self, clients: Tensor) -> "Penalty":
        """The same term for some of the clients, in the given order."""

    @abstractmethod
    def value(self, weights: Tensor) -> Tensor:
        """Values `(K,)`, without their factor, at the weights `(K, D)` of all clients."""

    @abstractmethod
    def add_gradient_(self, gradient: Tensor, weights: Tensor, rows: slice, step: int) -> None:
        """Adds the term's gradient at `weights (k, D)` to `gradient (k, D)` in place.

        Args:
            gradient: Gradients of the clients in `rows`.
            weights: Their weights.
            rows: Which of the K clients these are.
            step: Local steps taken so far in this stage.
        """


class ProximalPenalty(Penalty):
    """`(weight / 2) ||w - anchor||^2`: the term of FedProx and of Ditto.

    Args:
        anchor: Weights `(D,)`, the same for all, or `(K, D)`.
        weight: Its factor.
    """

    def __init__(self, anchor: Tensor, weight: float) -> None:
        self.anchor = anchor if anchor.ndim == 2 else anchor.unsqueeze(0)
        self.weight = weight

    def take(self, clients: Tensor) -> "ProximalPenalty":
        """See `Penalty.take`."""
        return ProximalPenalty(self.anchor if len(self.anchor) == 1 else self.anchor[clients], self.weight)

    def value(self, weights: Tensor) -> Tensor:
        """See `Penalty.value`: half the squared distances."""
        return (weights - self.anchor).square().sum(dim=1) / 2

    def add_gradient_(self, gradient: Tensor, weights: Tensor, rows: slice, step: int) -> None:
        """See `Penalty.add_gradient_`."""
        anchor = self.anchor if len(self.anchor) == 1 else self.anchor[rows]
        gradient.add_(weights, alpha=self.weight).sub_(anchor, alpha=self.weight)


class SpectralPenalty(Penalty):
    """`weight * D` between the spectra of the weights and of a teacher, which is transformed once.

    Args:
        teacher: Weights `(K, D)` of the teachers, constants.
        weight: Factor of the divergence.
        plan: Layout and truncation of the spectra.
        segments: Where the weights that enter the spectrum lie in the D values.
        student_first: `D(student | teacher)` if true, else `D(teacher | student)`.
        scale_by_norm: Whether to multiply the factor by the teacher's squared norm, so that one factor means about
            the same pull for networks of all sizes.
        every_k_steps: Apply the term in every k-th step only, k times as strong.
    """

    def __init__(
        self,
        teacher: Tensor,
        weight: float,
        plan: SpectralPlan,
        segments: Sequence[slice],
        student_first: bool,
        scale_by_norm: bool = False,
        every_k_steps: int = 1,
    ) -> None:
        self.segments, self.every_k_steps = segments, every_k_steps
        chosen = gather(teacher, segments)
        self.target = SpectralTarget(spectral_distribution(chosen, plan), plan, student_first)
        self.weight = torch.full((len(teacher), 1), weight, dtype=teacher.dtype, device=teacher.device)
        if scale_by_norm:
            self.weight *= chosen.square().sum(dim=1, keepdim=True)

    def take(self, clients: Tensor) -> "SpectralPenalty":
        """See `Penalty.take`."""
        taken = copy.copy(self)
        taken.target, taken.weight = self.target.take(clients), self.weight[clients]
        return taken

    def value(self, weights: Tensor) -> Tensor:
        """See `Penalty.value`: the divergences."""
        return self.target.divergence(gather(weights, self.segments))

    def measure(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Divergences `(K,)` and the norms `(K,)` of their gradients, these with the factor, of all clients."""
        value, gradient = self.target.divergence_and_gradient(gather(weights, self.segments), self.weight)
        return value, gradient.norm(dim=1)

    def add_gradient_(self, gradient: Tensor, weights: Tensor, rows: slice, step: int) -> None:
        """See `Penalty.add_gradient_`."""
        if step % self.every_k_steps:
            return
        target, factor = self.target, self.weight * self.every_k_steps
        if len(weights) < len(factor):
            target, factor = target.take(rows), factor[rows]
        _, term = target.divergence_and_gradient(gather(weights, self.segments), factor)
        parts = cut(gradient, self.segments)
        for place, part in zip(parts, torch.split(term, [place.shape[1] for place in parts], dim=1), strict=True):
            place.add_(part)
