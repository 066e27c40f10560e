"""The strategies that learned weights are measured beside: Ren et al., Meta-Weight-Net, inverse frequency."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_methods.data_manipulation.functional import effective_number_weights, inverse_frequency, linear_weights
from lit_methods.data_manipulation.hypergradient import Hypergradient
from lit_methods.data_manipulation.lookahead import AtTheta, PlainGradient
from lit_methods.data_manipulation.strategies import SampleBatch, WeightingStrategy
from lit_methods.errors import check_at_least


class RenReweighting(WeightingStrategy):
    """Weights of this batch's alignment alone, positive parts over their sum (Ren et al. 2018, Algorithm 1).

    Needs a validation set, nothing else is kept.

    Args:
        uniform_fallback: What a batch gets in which no example aligns: False for weights of zero, as in the paper,
            so that only momentum and weight decay move the model; True for uniform weights.
    """

    needs_gains = True
    needs_fresh_gains = True

    def __init__(self, uniform_fallback: bool = False) -> None:
        self.uniform_fallback = uniform_fallback
        self._fresh: Tensor | None = None

    def hypergradient(self) -> Hypergradient:
        """At `theta`, where the method's weights of zero leave the look-ahead."""
        return Hypergradient(lookahead=AtTheta())

    def weights(self, batch: SampleBatch) -> Tensor:
        """Weights of the gains last seen, once; uniform before any."""
        fresh, self._fresh = self._fresh, None
        return torch.ones(batch.size, device=batch.device) if fresh is None else fresh

    def update(self, batch: SampleBatch, weights: Tensor, gains: Tensor) -> None:
        """See the base class."""
        scale = gains.abs().max().clamp(min=torch.finfo(gains.dtype).tiny)
        found = linear_weights(gains / scale)
        self._fresh = torch.where(found.sum() > 0, found, 1.0) if self.uniform_fallback else found


class MetaWeightNet(WeightingStrategy):
    """The weight as a small network of the loss, learned by the hypergradient (Shu et al. 2019, Algorithm 1).

    One network for all examples, so that it needs no index and serves data that is not seen twice. Weights lie in
    (0, 1) and are not normalized, as in the stable version of the authors' code.

    Args:
        hidden: Width of the hidden layer.
        lr: Adam's learning rate.
        weight_decay: Adam's L2 penalty.
        seed: Of the initial weights.

    Raises:
        ValueError: If a size or rate is out of its range.
    """

    needs_losses = True
    needs_gains = True
    needs_fresh_gains = True

    def __init__(self, hidden: int = 100, lr: float = 1e-3, weight_decay: float = 1e-4, seed: int = 0) -> None:
        check_at_least("hidden", hidden, 1)
        check_at_least("lr", lr)
        check_at_least("weight_decay", weight_decay)
        self._options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self._hidden, self._seed = hidden, seed
        self.start(1, None, torch.device("cpu"))

    def hypergradient(self) -> Hypergradient:
        """At `theta'` by the plain gradient, as the paper does."""
        return Hypergradient(lookahead=PlainGradient())

    def start(self, num_samples: int, class_counts: Tensor | None, device: torch.device) -> None:
        """See the base class."""
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(self._seed)
            layers = nn.Linear(1, self._hidden), nn.ReLU(), nn.Linear(self._hidden, 1), nn.Sigmoid()
        self.network = nn.Sequential(*layers).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), **self._options)

    def weights(self, batch: SampleBatch) -> Tensor:
        """See the base class; not of mean 1."""
        with torch.no_grad():
            return self._of(batch)

    def update(self, batch: SampleBatch, weights: Tensor, gains: Tensor) -> None:
        """See the base class."""
        with torch.enable_grad():
            objective = -(self._of(batch) * gains.detach().float()).mean()
        for parameter, gradient in zip(
            self.network.parameters(), torch.autograd.grad(objective, list(self.network.parameters())), strict=True
        ):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _of(self, batch: SampleBatch) -> Tensor:
        if batch.losses is None:
            raise ValueError("losses=None, but MetaWeightNet weighs by the loss.")
        found: Tensor = self.network(batch.losses.detach().float()[:, None])[:, 0]
        return found

    def state_dict(self) -> dict[str, Any]:
        """See the base class."""
        return copy.deepcopy({"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See the base class."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


class InverseFrequency(WeightingStrategy):
    """Weights by the frequency of the class ("Proportion" in the paper), no validation set.

    Args:
        class_counts: Training examples of each class; None counts them before training.
        power: 1 for the inverse frequency, 0.5 for its root.
        beta: In (0, 1) for the effective number of samples in place of a power; None for the power.

    Raises:
        ValueError: If an argument is out of its range.
    """

    needs_labels = True

    def __init__(
        self, class_counts: Sequence[int] | None = None, power: float = 1.0, beta: float | None = None
    ) -> None:
        if class_counts is not None and (len(class_counts) == 0 or min(class_counts) < 0):
            raise ValueError(f"class_counts={class_counts} must hold one number of examples per class, none negative.")
        if beta is not None and not 0 < beta < 1:
            raise ValueError(f"beta={beta} must lie in (0, 1).")
        self.class_counts, self.power, self.beta = class_counts, power, beta
        self._class_weights = torch.ones(1)

    def start(self, num_samples: int, class_counts: Tensor | None, device: torch.device) -> None:
        """See the base class."""
        counts = class_counts if self.class_counts is None else torch.tensor(self.class_counts)
        if counts is None:
            raise ValueError("class_counts=None and no counts of the training set. Pass class_counts=.")
        found = (
            inverse_frequency(counts, self.power) if self.beta is None else effective_number_weights(counts, self.beta)
        )
        self._class_weights = found.to(device)

    def weights(self, batch: SampleBatch) -> Tensor:
        """See the base class."""
        if batch.labels is None:
            raise ValueError("labels=None, but InverseFrequency weighs by the class.")
        if int(batch.labels.max()) >= len(self._class_weights):
            raise ValueError(
                f"class_counts has {len(self._class_weights)} classes, but a batch has label {int(batch.labels.max())}."
            )
        return linear_weights(self._class_weights[batch.labels], floor=0.0)
