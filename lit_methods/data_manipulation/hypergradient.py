"""The one-step hypergradient (equations 7 and 8): what the validation loss gains from each example, or from `phi`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lit_methods.data_manipulation.derivatives import Derivative, FiniteDifference
from lit_methods.data_manipulation.lookahead import LookAhead, TrainingStep
from lit_methods.data_manipulation.problem import Problem
from lit_methods.errors import check_object


class Gains(NamedTuple):
    """What one look-ahead found.

    Attributes:
        values: `-d L_val(theta') / d q_i` of each training example, `(B,)`; positive where more weight helps.
        val_loss: The validation loss, a scalar; None where an earlier validation gradient was used again.
    """

    values: Tensor
    val_loss: Tensor | None


class Record(Protocol):
    """What a hypergradient takes out of a training step while it runs."""

    def __call__(self, losses: Tensor) -> None:
        """Sees the step's losses `(B,)`, unweighted, before their mean."""

    def remove(self) -> None:
        """Ends the watch."""


class Hypergradient:
    """Gradient of the validation loss after one training step.

    Args:
        derivative: Backend of the derivative of the training losses; None for `FiniteDifference()`.
        lookahead: Where the validation gradient is taken; None for `TrainingStep()` in a Trainer, which comes to
            `AtTheta()` where there is no training step to follow.
        refresh_every: Steps that share one validation gradient.

    Attributes:
        keeps_origin: Whether a look-ahead that follows the training step needs `theta` from before it.

    Guarantees:
        - Parameters, their `.grad`, and the state of the optimizer are bit for bit what they were.

    Raises:
        ValueError: If `refresh_every` is below 1.
        TypeError: If a string stands for an object.
    """

    keeps_origin = True

    def __init__(
        self, derivative: Derivative | None = None, lookahead: LookAhead | None = None, refresh_every: int = 1
    ) -> None:
        if refresh_every < 1:
            raise ValueError(f"refresh_every={refresh_every} must be at least 1.")
        check_object("derivative", derivative, Derivative, "FiniteDifference()")
        check_object("lookahead", lookahead, LookAhead, "TrainingStep()")
        self.derivative = derivative or FiniteDifference()
        self.lookahead = lookahead or TrainingStep()
        self.refresh_every = refresh_every
        self._age = 0
        self._slope: list[Tensor] | None = None

    def watch(self, module: nn.Module) -> Record | None:
        """Begins to watch a training step of a module; None where nothing of it is needed."""
        return None

    def gains(
        self,
        problem: Problem,
        weights: Tensor | None = None,
        origin: Sequence[Tensor] | None = None,
        records: Sequence[Record] = (),
    ) -> Gains:
        """Effect of each example's share `q_i` on the validation loss after one step.

        Args:
            problem: The two losses.
            weights: Relative weights (mean 1) of the look-ahead step, `(B,)`; None for a look-ahead that stays at
                `theta`.
            origin: `theta` before the training step, for a look-ahead that follows it; None where the parameters are
                still `theta`. Overwritten.
            records: What `watch` gave for each micro-batch of the training step.

        Returns:
            The gains. Over all processes, `weights` and the result are those of this process' own examples.

        Raises:
            ValueError: If the look-ahead moves and has no weights.
        """
        gradient = None
        if self.lookahead.moves:
            if weights is None:
                raise ValueError(f"weights=None, but {type(self.lookahead).__name__} takes a weighted step.")
            with torch.enable_grad():
                gradient = problem.gradient((problem.train_losses() * weights.detach()).mean())
            if problem.reduce is not None:
                problem.reduce(gradient)
        slope, val_loss = self.slope(problem, gradient)
        direction = self.lookahead.jacobian(problem, gradient, slope)
        with nullcontext() if origin is None else problem.at(origin):
            return Gains(self.derivative.per_example(problem, direction), val_loss)

    def variable_gradient(
        self, problem: Problem, loss: Callable[[], Tensor], variables: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor | None]:
        """Gradient of the validation loss after one step by any `phi` that the training loss depends on.

        Args:
            problem: Owner of `theta`; its `train_losses` are not used.
            loss: Scalar training loss of `theta` and `phi`; the same random draws in each call.
            variables: `phi`.

        Returns:
            One tensor per variable, and the validation loss as in `Gains`.
        """
        gradient = None
        if self.lookahead.moves:
            with torch.enable_grad():
                gradient = problem.gradient(loss())
            if problem.reduce is not None:
                problem.reduce(gradient)
        slope, val_loss = self.slope(problem, gradient)
        direction = self.lookahead.jacobian(problem, gradient, slope)
        found = self.derivative.mixed(problem, loss, variables, direction)
        return [-value for value in found], val_loss

    def slope(self, problem: Problem, gradient: Sequence[Tensor] | None) -> tuple[list[Tensor], Tensor | None]:
        """The validation gradient at the look-ahead, or an earlier one that is still in use."""
        if self._slope is not None and self._age < self.refresh_every:
            self._age += 1
            return self._slope, None
        with torch.enable_grad():
            if gradient is None:
                loss = problem.val_loss()
                slope = problem.gradient(loss)
            else:
                with problem.at(self.lookahead.step(problem, gradient)):
                    loss = problem.val_loss()
                    slope = problem.gradient(loss)
        if problem.reduce is not None:
            problem.reduce(slope)
        if self.refresh_every > 1:
            self._slope, self._age = slope, 1
        return slope, loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """The validation gradient still in use."""
        return {"age": self._age, "slope": [v.clone() for v in self._slope] if self._slope is not None else []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the saved validation gradient."""
        self._age = int(state["age"])
        self._slope = list(state["slope"]) or None

    def reset(self) -> None:
        """Forgets the validation gradient."""
        self._age, self._slope = 0, None
