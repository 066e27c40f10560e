"""What a run with correlated noise spends: one interface, and the budget of a fixed order (Section 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from lit_methods.differential_privacy.budget import check_noise
from lit_methods.differential_privacy.factorization import Participation, Strategy
from lit_methods.differential_privacy.functional import gaussian_epsilon, gaussian_noise_multiplier
from lit_methods.differential_privacy.samplers import AccountedBatchSampler, FixedOrderBatchSampler

ROUNDING = 1.0 + 1e-6


@dataclass(frozen=True)
class Accounting(ABC):
    """The budget of a run: how much noise, and what it amounts to after each step.

    Attributes:
        strategy: The strategy with its participation schedule.
        noise_multiplier: ``sigma``: the noise over :attr:`sensitivity`.
        delta: The ``delta`` at which epsilon is told.
        adjacency: Which data sets count as neighbours, in a word, and
        neighbours: in a clause of a sentence.
        order: How the examples are ordered, as a clause.

    Raises:
        ValueError: On a noise multiplier or a ``delta`` out of range.
    """

    strategy: Strategy
    noise_multiplier: float
    delta: float
    adjacency: ClassVar[str]
    neighbours: ClassVar[str]
    order: ClassVar[str]

    def __post_init__(self) -> None:
        """Refuses constants out of range."""
        check_noise(self.noise_multiplier, self.delta)

    @property
    def accounted(self) -> Participation:
        """The participation that :attr:`sensitivity` covers."""
        return self.strategy.participation

    @property
    def sensitivity(self) -> float:
        """What the noise multiplier is measured against, for clip norm 1: the strategy's under :attr:`accounted`."""
        return replace(self.strategy, participation=self.accounted).sensitivity()

    def expected_error(self) -> float:
        """Expected error (equation 4) for unit noise multiplier and clip norm."""
        return self.sensitivity * self.strategy.decoder_norm()

    def error(self) -> float:
        """What the noise leaves in the models, for clip norm 1: the figure by which to choose among mechanisms."""
        return self.noise_multiplier * self.expected_error()

    @property
    def noise_std(self) -> float:
        """Standard deviation of ``z`` for clip norm 1; rounded up to cover float32 clipping and noise."""
        return self.noise_multiplier * self.sensitivity * ROUNDING

    @abstractmethod
    def epsilon_after(self, steps: int) -> float:
        """``epsilon`` that the first ``steps`` steps have spent; a prefix is post-processing of the whole.

        Args:
            steps: Optimizer steps taken.

        Returns:
            ``epsilon`` at ``delta``: 0 before the first step, infinity without noise.
        """

    @abstractmethod
    def calibrated(self, epsilon: float) -> Self:
        """The same accounting with the least noise that keeps the whole run within a budget.

        Args:
            epsilon: Budget, above 0.

        Returns:
            An accounting whose noise multiplier is rounded up.

        Raises:
            ValueError: On a budget that is not a finite number above 0.
        """

    @abstractmethod
    def check_sampler(
        self, sampler: AccountedBatchSampler, accumulation: int = 1, batches_per_epoch: int | None = None
    ) -> None:
        """Refuses a sampler whose batches this accounting says nothing about.

        Args:
            sampler: What makes the batches.
            accumulation: Batches per optimizer step.
            batches_per_epoch: Batches of a pass that are trained on, where that is not all of them.

        Raises:
            ValueError: Naming what does not fit.
        """

    @abstractmethod
    def describe(self) -> str:
        """One clause on what is accounted for, for the log."""

    def at(self, delta: float) -> Self:
        """The same run, told at another ``delta``."""
        return replace(self, delta=delta)

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must share, as plain containers."""
        strategy, schedule = self.strategy, self.strategy.participation
        return {
            "kind": type(self).__name__,
            "steps": schedule.steps,
            "participations": schedule.participations,
            "separation": schedule.separation,
            "strategy": strategy.name,
            "coefficients": (strategy.coefficients if strategy.noising is None else strategy.noising).tolist(),
            "noise_multiplier": self.noise_multiplier,
        }

    def _check_schedule(self, sampler: AccountedBatchSampler, accumulation: int, batches_per_epoch: int | None) -> None:
        planned = self.strategy.participation
        real = sampler.participation(planned.steps, accumulation, batches_per_epoch)
        if planned != real:
            raise ValueError(
                f"The strategy was made for {planned}, but the sampler gives {real}. Make the strategy with"
                " sampler.participation(steps, accumulation)."
            )


@dataclass(frozen=True)
class FixedOrderAccounting(Accounting):
    """The budget of a run whose batches come in the same order in every epoch, without amplification.

    The whole run is one Gaussian mechanism on ``C X`` with the strategy's sensitivity, so that the tight analytic
    calibration holds for all intermediate models together.

    Guarantees:
        - With noise of standard deviation ``noise_std * max_grad_norm`` before the filter ``C^-1`` the whole run is
          ``(epsilon_after(n), delta)``-DP for one example replaced by "no gradient".
        - ``epsilon_after`` never decreases and ends at the budget that the noise multiplier was calibrated to.
    """

    adjacency = "zero-out"
    neighbours = "against leaving out any one training example"
    order = "in a fixed order"

    def inverse_noise_after(self, steps: int) -> float:
        """``mu`` of Gaussian differential privacy after the first ``steps`` steps: sensitivity over noise."""
        if steps < 1:
            return 0.0
        steps = min(steps, self.strategy.participation.steps)
        noise = self.noise_multiplier * self.sensitivity
        return self.strategy.sensitivity(steps) / noise if noise > 0 else float("inf")

    def epsilon_after(self, steps: int) -> float:
        """See :meth:`Accounting.epsilon_after`."""
        mu = self.inverse_noise_after(steps)
        return gaussian_epsilon(1.0 / mu, self.delta) if mu > 0 else 0.0

    def calibrated(self, epsilon: float) -> Self:
        """See :meth:`Accounting.calibrated`."""
        return replace(self, noise_multiplier=gaussian_noise_multiplier(epsilon, self.delta))

    def check_sampler(
        self, sampler: AccountedBatchSampler, accumulation: int = 1, batches_per_epoch: int | None = None
    ) -> None:
        """See :meth:`Accounting.check_sampler`.

        Raises:
            ValueError: If the batches are not in a fixed order, or not those of the plan.
        """
        if not isinstance(sampler, FixedOrderBatchSampler):
            raise ValueError(
                f"FixedOrderAccounting bounds who takes part when by a frozen order, but {type(sampler).__name__} draws"
                " batches at random. Let lit_methods.differential_privacy.calibrate choose the accounting from the"
                " sampler, or use FixedOrderBatchSampler."
            )
        self._check_schedule(sampler, accumulation, batches_per_epoch)

    def describe(self) -> str:
        """See :meth:`Accounting.describe`."""
        schedule = self.strategy.participation
        return (
            f"fixed order, k={schedule.participations} participations at least b={schedule.separation} steps apart in"
            f" n={schedule.steps} steps, noise multiplier {self.noise_multiplier:.4f} on sensitivity"
            f" {self.sensitivity:.4f}"
        )
