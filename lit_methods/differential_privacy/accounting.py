"""What a run with correlated noise spends: one Gaussian mechanism over all steps, in fixed order (Section 2)."""

from __future__ import annotations

from dataclasses import dataclass

from lit_methods.differential_privacy.factorization import Strategy
from lit_methods.differential_privacy.functional import gaussian_epsilon

ROUNDING = 1.0 + 1e-6


@dataclass(frozen=True)
class FixedOrderAccounting:
    """The budget of a run whose batches come in the same order in every epoch, without amplification.

    The whole run is one Gaussian mechanism on ``C X`` with the strategy's sensitivity, so that the tight analytic
    calibration holds for all intermediate models together.

    Guarantees:
        - With noise of standard deviation ``noise_std * max_grad_norm`` before the filter ``C^-1`` the whole run is
          ``(epsilon_after(n), delta)``-DP for one example replaced by "no gradient".
        - ``epsilon_after`` never decreases and ends at the budget that the noise multiplier was calibrated to.

    Attributes:
        strategy: The strategy with its participation schedule.
        noise_multiplier: ``sigma``: the noise over the sensitivity of the whole run.
        delta: The ``delta`` at which epsilon is told.
    """

    strategy: Strategy
    noise_multiplier: float
    delta: float

    @property
    def noise_std(self) -> float:
        """Standard deviation of ``z`` for clip norm 1; rounded up to cover float32 clipping and noise."""
        return self.noise_multiplier * self.strategy.sensitivity() * ROUNDING

    def inverse_noise_after(self, steps: int) -> float:
        """``mu`` of Gaussian differential privacy after the first ``steps`` steps: sensitivity over noise."""
        if steps < 1:
            return 0.0
        steps = min(steps, self.strategy.participation.steps)
        noise = self.noise_multiplier * self.strategy.sensitivity()
        return self.strategy.sensitivity(steps) / noise if noise > 0 else float("inf")

    def epsilon_after(self, steps: int) -> float:
        """``epsilon`` that the first ``steps`` steps have spent; a prefix is post-processing of the whole.

        Args:
            steps: Optimizer steps taken.

        Returns:
            ``epsilon`` at ``delta``: 0 before the first step, infinity without noise.
        """
        mu = self.inverse_noise_after(steps)
        return gaussian_epsilon(1.0 / mu, self.delta) if mu > 0 else 0.0
