"""From logits to weights, and the steps that move logits along their gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lit_methods.data_manipulation.functional import (
    lazy_adam_step,
    linear_weights,
    softmax_weight_gradient,
    softmax_weights,
)
from lit_methods.errors import check_above, check_at_least


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
        check_above("temperature", temperature)
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
        check_at_least("lr", lr)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={tuple(betas)} must lie in [0, 1), one for each of the two moments.")
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
        check_at_least("lr", lr)
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
        check_at_least("lr", lr)
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
        check_at_least("decay", decay, 1)
        check_at_least("floor", floor)
        self.decay = decay
        self.floor = floor

    def __call__(self, rows: Tensor, gradient: Tensor, moments: Tensor, visits: Tensor) -> Tensor:
        """See the base class."""
        return (rows / self.decay - gradient).clamp(min=self.floor)
