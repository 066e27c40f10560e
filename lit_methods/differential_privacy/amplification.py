"""The budget of banded noise under cyclic Poisson sampling (Choquette-Choo et al. 2023, arXiv 2306.08153)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

from scipy import optimize

from lit_methods.differential_privacy.accounting import Accounting
from lit_methods.differential_privacy.factorization import Participation
from lit_methods.differential_privacy.functional import gaussian_epsilon, gaussian_noise_multiplier
from lit_methods.differential_privacy.poisson import CyclicPoissonBatchSampler
from lit_methods.differential_privacy.samplers import AccountedBatchSampler


def _grid(noise_multiplier: float, sampling_probability: float) -> float:
    """Spacing of the privacy loss: a twentieth of one round's spread, and fine enough where the spread is large."""
    inverse = noise_multiplier**-2
    spread = sampling_probability * math.sqrt(math.expm1(min(inverse, 50.0)))
    return min(spread / 20.0, 2e-3 * max(1.0, 0.04 * inverse))


@lru_cache(maxsize=4)
def _round_loss(noise_multiplier: float, sampling_probability: float) -> Any:
    """Privacy loss distribution of one Poisson-sampled Gaussian round, never better than the truth."""
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        pessimistic_estimate=True,
        value_discretization_interval=_grid(noise_multiplier, sampling_probability),
        sampling_prob=sampling_probability,
    )


@lru_cache(maxsize=4096)
def poisson_sampled_gaussian_epsilon(
    noise_multiplier: float, sampling_probability: float, rounds: int, delta: float
) -> float:
    """Upper bound on the ``epsilon`` of Poisson-sampled Gaussian rounds, adaptively composed.

    Args:
        noise_multiplier: Standard deviation over sensitivity of a round; 0 gives infinity.
        sampling_probability: ``q`` in (0, 1].
        rounds: Number of rounds; 0 gives 0.
        delta: In (0, 1).

    Returns:
        ``epsilon`` of the discretized privacy loss (rounded towards more loss), or of the rounds without sampling
        where that is less.

    Raises:
        ValueError: On parameters out of range.
    """
    if not 0.0 < sampling_probability <= 1.0:
        raise ValueError(f"sampling_probability must lie in (0, 1], but is {sampling_probability!r}.")
    if rounds < 1:
        return 0.0
    unsampled = gaussian_epsilon(noise_multiplier / math.sqrt(rounds), delta)
    if sampling_probability == 1.0 or not 0.0 < unsampled < math.inf:
        return unsampled
    loss = _round_loss(noise_multiplier, sampling_probability).self_compose(rounds)
    return min(float(loss.get_epsilon_for_delta(delta)), unsampled)


@dataclass(frozen=True)
class CyclicPoissonAccounting(Accounting):
    """The budget of a banded strategy under cyclic Poisson sampling, amplified by the sampling.

    The columns of ``C`` that belong to one group's steps do not overlap where the band ``p`` is at most the number
    ``g`` of groups. For an example of that group the run is then at most ``ceil(n / g)`` rounds of the Gaussian
    mechanism with sensitivity ``||c||``, the largest column norm, each Poisson-sampled with probability ``q``
    (Theorem 4 of the paper). Their privacy loss is composed numerically by dp-accounting.

    Guarantees:
        - With noise of standard deviation ``noise_std * max_grad_norm`` before the filter ``C^-1`` the whole run is
          ``(epsilon_after(n), delta)``-DP for one example added or removed, if
          (1) ``C`` is ``p``-banded and ``p <= g``; (2) every example has its group by an independent uniform draw, and
          joins each step of its group by an independent coin of probability ``q``, as
          :class:`~lit_methods.differential_privacy.poisson.CyclicPoissonBatchSampler` does it; (3) nobody learns the
          coins; (4) ``q``, the divisor of a step's sum and the number of steps do not depend on the example.
        - ``epsilon_after`` never decreases, and is at most what the same noise would spend without sampling.

    Attributes:
        sampling_probability: ``q``; the number of groups ``g`` is the separation of the strategy's schedule.

    Raises:
        ValueError: For a strategy that is not banded, a band wider than the number of groups, or ``q`` outside (0, 1].
    """

    sampling_probability: float

    adjacency = "add-or-remove"
    neighbours = "against adding or removing any one training example"
    order = "drawn by secret coins in cyclic Poisson sampling"

    def __post_init__(self) -> None:
        """Refuses what the theorem does not cover."""
        super().__post_init__()
        if not self.strategy.banded:
            raise ValueError(
                f"Sampling does not amplify {self.strategy.name}, whose C is not banded: its columns overlap however"
                " far apart they are. Use BandedSquareRoot, Identity, BestClosedForm(banded_only=True), or FixedOrder."
            )
        if self.strategy.bandwidth > self.cycle_length:
            raise ValueError(
                f"Columns of bandwidth {self.strategy.bandwidth} overlap when an example may come again after"
                f" {self.cycle_length} steps. Lower bandwidth, or raise cycle_length of the sampler to it."
            )
        if not 0.0 < self.sampling_probability <= 1.0:
            raise ValueError(f"sampling_probability must lie in (0, 1], but is {self.sampling_probability!r}.")

    @property
    def cycle_length(self) -> int:
        """Number ``g`` of groups."""
        return self.strategy.participation.separation

    @property
    def accounted(self) -> Participation:
        """A single participation, whose sensitivity is the largest column norm of ``C``."""
        steps = self.strategy.participation.steps
        return Participation(steps, 1, steps)

    def epsilon_after(self, steps: int) -> float:
        """See :meth:`Accounting.epsilon_after`; the rounds that have begun count."""
        rounds = -(-max(0, min(steps, self.strategy.participation.steps)) // self.cycle_length)
        return poisson_sampled_gaussian_epsilon(self.noise_multiplier, self.sampling_probability, rounds, self.delta)

    def calibrated(self, epsilon: float) -> Self:
        """See :meth:`Accounting.calibrated`; within about one part in 1e4 of the least that the bound gives."""
        steps = self.strategy.participation.steps
        rounds = -(-steps // self.cycle_length)
        alone = gaussian_noise_multiplier(epsilon, self.delta)

        def excess(noise_multiplier: float) -> float:
            return replace(self, noise_multiplier=noise_multiplier).epsilon_after(steps) - epsilon

        most = alone * math.sqrt(rounds)
        # Where many rounds look like one Gaussian mechanism (central limit), this is the answer.
        limit = math.log1p((alone * self.sampling_probability) ** -2 / rounds) ** -0.5
        low = high = min(limit, most)
        while excess(high) > 0 and high < most:
            low, high = high, min(1.25 * high, most)
        while excess(low) <= 0:
            low, high = 0.8 * low, low
        if excess(high) < 0:
            high = optimize.brentq(excess, low, high, xtol=1e-5 * low)
        step = 1e-5
        while excess(high) > 0:
            high, step = high * (1.0 + step), 2.0 * step
        return replace(self, noise_multiplier=float(high))

    def check_sampler(
        self, sampler: AccountedBatchSampler, accumulation: int = 1, batches_per_epoch: int | None = None
    ) -> None:
        """See :meth:`Accounting.check_sampler`.

        Raises:
            ValueError: If nobody tosses coins, or not those of the plan.
        """
        if not isinstance(sampler, CyclicPoissonBatchSampler):
            raise ValueError(
                f"CyclicPoissonAccounting counts on secret coins, but {type(sampler).__name__} tosses none, so that"
                " nothing is amplified. Let lit_methods.differential_privacy.calibrate choose the accounting from the"
                " sampler, or use CyclicPoissonBatchSampler."
            )
        self._check_schedule(sampler, accumulation, batches_per_epoch)
        if sampler.sampling_probability > self.sampling_probability:
            raise ValueError(
                f"The sampler draws with probability {sampler.sampling_probability:.6g}, but the noise was planned for"
                f" {self.sampling_probability:.6g}. Make the accounting from the sampler that is trained with."
            )

    def describe(self) -> str:
        """See :meth:`Accounting.describe`."""
        schedule = self.strategy.participation
        return (
            f"cyclic Poisson sampling of g={schedule.separation} groups with q={self.sampling_probability:.4g},"
            f" {schedule.participations} rounds in n={schedule.steps} steps, noise multiplier"
            f" {self.noise_multiplier:.4f} on column norm {self.sensitivity:.4f}"
        )

    def fingerprint(self) -> dict[str, Any]:
        """See :meth:`Accounting.fingerprint`."""
        return {**super().fingerprint(), "sampling_probability": self.sampling_probability}
