"""Weighting strategies in one interface: the interface, plain training, and learned weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_methods.data_manipulation.hypergradient import Hypergradient
from lit_methods.data_manipulation.steps import Normalization, WeightStep
from lit_methods.data_manipulation.weights import WeightTable


@dataclass(frozen=True)
class SampleBatch:
    """What a strategy may know of a batch, over all processes.

    Attributes:
        index: Position of each example in the training set, `(B,)`; None where the batch has none.
        labels: Classes `(B,)`; None unless the strategy needs them.
        losses: Loss of each example at `theta`, detached, `(B,)`; None unless the strategy needs them.
        size: B.
        device: Where weights are wanted.
    """

    index: Tensor | None
    labels: Tensor | None
    losses: Tensor | None
    size: int
    device: torch.device


class WeightingStrategy(ABC):
    """Weights of the examples of a batch, and how they learn from gains.

    Attributes:
        needs_index: Whether batches must carry the examples' positions.
        needs_labels: Whether batches must carry labels.
        needs_losses: Whether the losses at `theta` are wanted, which costs a forward pass.
        needs_gains: Whether `update` wants gains, and with them a validation set.
        needs_fresh_gains: Whether the weights of a batch are made of that batch's own gains.
    """

    needs_index = False
    needs_labels = False
    needs_losses = False
    needs_gains = False
    needs_fresh_gains = False

    def hypergradient(self) -> Hypergradient:
        """The hypergradient that the method's paper takes, or the cheapest that suits it."""
        return Hypergradient()

    def start(self, num_samples: int, class_counts: Tensor | None, device: torch.device) -> None:
        """Makes the state anew for a training set.

        Args:
            num_samples: Number N of training examples.
            class_counts: Examples of each class, `(C,)`; None unless labels are needed.
            device: Where the state lives.
        """
        return None

    @abstractmethod
    def weights(self, batch: SampleBatch) -> Tensor:
        """Relative weights `(B,)`, mean 1 unless the strategy says otherwise."""

    def update(self, batch: SampleBatch, weights: Tensor, gains: Tensor) -> None:
        """Learns from gains `(B,)` that were found at these weights `(B,)`."""
        return None

    def sample_weights(self) -> Tensor | None:
        """Weight of each training example `(N,)`, mean 1; None where an example has none of its own."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state; `start` has run before."""
        return None


class UniformWeights(WeightingStrategy):
    """Weight 1 for every example: plain training, no validation set."""

    def weights(self, batch: SampleBatch) -> Tensor:
        """See the base class."""
        return torch.ones(batch.size, device=batch.device)


class LearnedWeights(WeightingStrategy):
    """A persistent weight per example, learned by the hypergradient (Hu et al. 2019, Section 4.2).

    Args:
        step: Moves the logits; None for `LazyAdam(lr=0.1)`. `NormalizedStep()` suits rare classes better.
        normalization: From logits to weights; None for `Softmax()`.
        initial: Logit of every example at the start.
        max_logit: Bound of the logits; None for none.
    """

    needs_index = True
    needs_gains = True

    def __init__(
        self,
        step: WeightStep | None = None,
        normalization: Normalization | None = None,
        initial: float = 0.0,
        max_logit: float | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "step": step,
            "normalization": normalization,
            "initial": initial,
            "max_logit": max_logit,
        }
        self.table = WeightTable(1, **self._options)

    def start(self, num_samples: int, class_counts: Tensor | None, device: torch.device) -> None:
        """See the base class."""
        self.table = WeightTable(num_samples, **self._options, device=device)

    def weights(self, batch: SampleBatch) -> Tensor:
        """See the base class."""
        return self.table.weights(batch.index)

    def update(self, batch: SampleBatch, weights: Tensor, gains: Tensor) -> None:
        """See the base class."""
        if batch.index is not None:
            self.table.step(batch.index, weights, gains)

    def sample_weights(self) -> Tensor | None:
        """The weights that one batch of all examples would have."""
        return self.table.weights()

    def state_dict(self) -> dict[str, Any]:
        """See the base class."""
        return self.table.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See the base class."""
        self.table.load_state_dict(state)
