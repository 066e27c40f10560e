"""The table of data weights: one persistent logit per training example, and the steps that move it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lit_methods.data_manipulation.functional import (
    lazy_adam_step,
    linear_weights,
    softmax_weight_gradient,
    softmax_weights,
)


class Normalization(ABC):
    """From the batch's rows of `phi` to weights of mean 1, and the gradient back."""

    @abstractmethod
    def weights(self, rows: Tensor) -> Tensor:
        """Relative weights of rows of `phi`, `(B,) -> (B,)`."""

    @abstractmethod
    def gradient(self, weights: Tensor, gains: Tensor) -> Tensor:
        """Gradient of the validation loss by the rows, from weights and gains, `(B,)`."""


class Softmax(Normalization):
    """Softmax over the batch: the paper's form.

    Args:
        temperature: Divides the logits.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be positive.")
        self.temperature = temperature

    def weights(self, rows: Tensor) -> Tensor:
        """See the base class."""
        return softmax_weights(rows, self.temperature)

    def gradient(self, weights: Tensor, gains: Tensor) -> Tensor:
        """See the base class."""
        return softmax_weight_gradient(weights, gains, self.temperature)


class Linear(Normalization):
    """Positive part over its sum, as the published code does; all zero where no row is positive.

    Its gradient is that of the unnormalized weight, as in the published code too: the look-ahead there takes the raw
    weight.
    """

    def weights(self, rows: Tensor) -> Tensor:
        """See the base class."""
        return linear_weights(rows)

    def gradient(self, weights: Tensor, gains: Tensor) -> Tensor:
        """See the base class."""
        return -gains


class WeightStep(ABC):
    """How visited rows of `phi` move along their gradient.

    Attributes:
        moments: Number of values kept per row.
    """

    moments = 0

    @abstractmethod
    def __call__(self, rows: Tensor, gradient: Tensor, moments: Tensor, visits: Tensor) -> Tensor:
        """New values of the visited rows.

        Args:
            rows: Before the step, `(K,)`.
            gradient: `(K,)`.
            moments: Kept values of these rows, `(moments, K)`, changed in place.
            visits: Visits of each row with this one, `(K,)`.
        """


class LazyAdam(WeightStep):
    """Adam whose moments and bias correction know the visits of their own row only (the default).

    The gradient by a logit is about `lr / B` times a difference of alignments, far too small for a plain step, and each
    row is visited once per epoch; Adam makes the step independent of that scale.

    Args:
        lr: Step size in logits; 0.1, or 0.03 below some 200 examples.
        betas: Decay of the moments.

    Raises:
        ValueError: If an argument is out of its range.
    """

    moments = 2

    def __init__(self, lr: float = 0.1, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        _check_rate(lr)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={tuple(betas)} must lie in [0, 1).")
        self.lr = lr
        self.betas = (float(betas[0]), float(betas[1]))

    def __call__(self, rows: Tensor, gradient: Tensor, moments: Tensor, visits: Tensor) -> Tensor:
        """See the base class."""
        change, first, second = lazy_adam_step(gradient, moments[0], moments[1], visits, lr=self.lr, betas=self.betas)
        moments[0], moments[1] = first, second
        return rows + change


class NormalizedStep(WeightStep):
    """A step along the gradient divided by its root mean square over the batch: better where a class is rare.

    Args:
        lr: Root mean square of the step in logits.

    Raises:
        ValueError: If the step size is negative.
    """

    def __init__(self, lr: float = 0.1) -> None:
        _check_rate(lr)
        self.lr = lr

    def __call__(self, rows: Tensor, gradient: Tensor, moments: Tensor, visits: Tensor) -> Tensor:
        """See the base class."""
        size = gradient.square().mean().sqrt()
        return rows - self.lr * gradient / size.clamp(min=torch.finfo(gradient.dtype).tiny)


class PlainStep(WeightStep):
    """A step along the gradient, as the paper writes it.

    Args:
        lr: Step size; as the gradient is small, of the order of B, not of the model's learning rate.

    Raises:
        ValueError: If the step size is negative.
    """

    def __init__(self, lr: float = 10.0) -> None:
        _check_rate(lr)
        self.lr = lr

    def __call__(self, rows: Tensor, gradient: Tensor, moments: Tensor, visits: Tensor) -> Tensor:
        """See the base class."""
        return rows - self.lr * gradient


class DecayingStep(WeightStep):
    """The published code's rule: `w <- max(w / decay - d L_val / d w, floor)` on unnormalized weights.

    Args:
        decay: Divides the old weight at each visit; above 1.
        floor: Least weight.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, decay: float = 2.0, floor: float = 1e-5) -> None:
        if not decay >= 1 or floor < 0:
            raise ValueError(f"decay={decay} must be at least 1 and floor={floor} not negative.")
        self.decay = decay
        self.floor = floor

    def __call__(self, rows: Tensor, gradient: Tensor, moments: Tensor, visits: Tensor) -> Tensor:
        """See the base class."""
        return (rows / self.decay - gradient).clamp(min=self.floor)


class WeightTable:
    """`phi`, one value per training example, kept from visit to visit.

    Args:
        num_samples: Number N of training examples.
        step: Moves visited rows; None for `LazyAdam()`.
        normalization: From rows to weights; None for `Softmax()`.
        initial: Value of every row at the start.
        max_logit: Rows stay within plus and minus this; None for no bound.
        device: Where the table lives.

    Guarantees:
        - Only visited rows change.
        - Equal rows give weights of exactly 1, and weights never are negative.
        - A row that a batch holds twice takes one step, along the sum of its gradients.

    Raises:
        ValueError: If `num_samples` is below 1 or `max_logit` is not positive.
    """

    def __init__(
        self,
        num_samples: int,
        step: WeightStep | None = None,
        normalization: Normalization | None = None,
        initial: float = 0.0,
        max_logit: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1.")
        if max_logit is not None and not max_logit > 0:
            raise ValueError(f"max_logit={max_logit} must be positive.")
        self.step_rule = step or LazyAdam()
        self.normalization = normalization or Softmax()
        self.max_logit = max_logit
        self.phi = torch.full((num_samples,), float(initial), device=device)
        self.moments = torch.zeros(self.step_rule.moments, num_samples, device=device)
        self.visits = torch.zeros(num_samples, dtype=torch.int32, device=device)

    def weights(self, index: Tensor | None = None) -> Tensor:
        """Relative weights of a batch, or of all examples as one batch.

        Args:
            index: Rows `(B,)`; None for all.

        Returns:
            Weights `(B,)` or `(N,)`, of mean 1.
        """
        return self.normalization.weights(self.phi if index is None else self.phi[index])

    @torch.no_grad()
    def step(self, index: Tensor, weights: Tensor, gains: Tensor) -> None:
        """Moves the rows of a batch so that the validation loss falls.

        Args:
            index: Rows `(B,)`.
            weights: The batch's relative weights, at which the gains were found, `(B,)`.
            gains: `-d L_val / d q_i`, `(B,)`.
        """
        gradient = self.normalization.gradient(weights.to(self.phi), gains.to(self.phi))
        rows, position = index.unique(return_inverse=True)
        if len(rows) < len(index):
            gradient = torch.zeros(len(rows)).to(gradient).index_add_(0, position, gradient)
        else:
            rows = index
        self.visits[rows] += 1
        moments = self.moments[:, rows]
        values = self.step_rule(self.phi[rows], gradient, moments, self.visits[rows])
        if self.max_logit is not None:
            values = values.clamp(-self.max_logit, self.max_logit)
        self.moments[:, rows] = moments
        self.phi[rows] = values

    def state_dict(self) -> dict[str, Any]:
        """`phi`, its moments and the visits, on the CPU."""
        return {
            "phi": self.phi.to("cpu", copy=True),
            "moments": self.moments.to("cpu", copy=True),
            "visits": self.visits.to("cpu", copy=True),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved table.

        Raises:
            ValueError: If it has another number of examples or of moments.
        """
        if state["phi"].shape != self.phi.shape or state["moments"].shape != self.moments.shape:
            raise ValueError(
                f"The saved table holds {len(state['phi'])} examples with {len(state['moments'])} moments each, but"
                f" {len(self.phi)} with {len(self.moments)} are needed: it belongs to another training set or step."
            )
        self.phi.copy_(state["phi"])
        self.moments.copy_(state["moments"])
        self.visits.copy_(state["visits"])


def _check_rate(lr: float) -> None:
    if lr < 0:
        raise ValueError(f"lr={lr} must not be negative.")
