"""The table of data weights: one persistent value per training example."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lit_methods.data_manipulation.steps import LazyAdam, Normalization, Softmax, WeightStep
from lit_methods.errors import check_above, check_object


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
        ValueError: If a number is out of its range.
        TypeError: If a string stands for an object.
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
        if max_logit is not None:
            check_above("max_logit", max_logit)
        if not math.isfinite(initial):
            raise ValueError(f"initial={initial} must be finite.")
        check_object("step", step, WeightStep, "LazyAdam(lr=0.1)")
        check_object("normalization", normalization, Normalization, "Softmax()")
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
        rows, position = torch.unique(index, return_inverse=True)
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
