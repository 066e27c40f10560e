"""An adversary who sees every intermediate model gains no more than the claimed epsilon, and not much less."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lit_methods.differential_privacy import (
    BandedSquareRoot,
    CorrelatedNoise,
    CorrelatedNoiseOptimizer,
    Factorization,
    FixedOrderAccounting,
    Identity,
    Participation,
    Strategy,
    Workload,
)
from lit_methods.differential_privacy.functional import gaussian_noise_multiplier

STEPS, SEPARATION, MOMENTUM, RATE = 12, 4, 0.5, 0.1
SCHEDULE = Participation(STEPS, 3, SEPARATION)


def released_models(strategy: Strategy, noise_std: float, canary: bool, runs: int, seed: int) -> Tensor:
    """All iterates of `runs` independent one-weight trainings: shape (STEPS, runs).

    The weights of the runs share one parameter; the canary's gradient of norm 1 is put into each by hand, as the
    clipped sum that the optimizer would hold.
    """
    weight = nn.Parameter(torch.zeros(runs, dtype=torch.float64))
    noise = CorrelatedNoise(strategy.coefficients, runs, STEPS, generator_seed=seed, dtype=torch.float64)
    optimizer = CorrelatedNoiseOptimizer(
        torch.optim.SGD([weight], lr=RATE, momentum=MOMENTUM),
        noise=noise,
        noise_std=noise_std,
        max_grad_norm=1.0,
        expected_batch_size=1,
    )
    models = []
    for step in range(STEPS):
        weight.grad_sample = None
        if canary and step % SEPARATION == 0:
            weight.summed_grad = torch.ones_like(weight)
        optimizer.step()
        models.append(weight.detach().clone())
    return torch.stack(models)


def best_statistic(models: Tensor, strategy: Strategy) -> Tensor:
    """The likelihood ratio's statistic: undo the optimizer, apply C, project on the canary's pattern."""
    before = torch.cat([torch.zeros(1, models.shape[1], dtype=models.dtype), models])
    momentum = (before[:-1] - before[1:]) / RATE
    gradients = momentum - MOMENTUM * torch.cat([torch.zeros_like(momentum[:1]), momentum[:-1]])
    column = torch.zeros(STEPS, dtype=torch.float64)
    column[: strategy.bandwidth] = strategy.coefficients
    encoder = torch.stack([torch.cat([torch.zeros(j), column[: STEPS - j]]) for j in range(STEPS)], dim=1).double()
    pattern = encoder @ (torch.arange(STEPS) % SEPARATION == 0).double()
    return pattern @ (encoder @ gradients) / pattern.norm()


def epsilon_lower_bound(strategy: Strategy, noise_std: float, delta: float, runs: int = 40_000) -> float:
    """Clopper-Pearson bound (99 %) on epsilon from the best threshold, chosen on separate runs."""

    def errors(seed: int, threshold: float | None) -> tuple[float, float, float]:
        absent, present = (
            best_statistic(released_models(strategy, noise_std, canary, runs, 2 * seed + canary), strategy)
            for canary in (False, True)
        )
        if threshold is None:
            candidates = torch.linspace(float(absent.min()), float(present.max()), 200)
            rates = [((absent > c).double().mean(), (present > c).double().mean(), c) for c in candidates]
            threshold = float(max(rates, key=lambda r: (r[1] - delta) / (r[0] + 5 / runs))[2])
        return float((absent > threshold).sum()), float((present > threshold).sum()), threshold

    threshold = errors(1, None)[2]
    false, true, _ = errors(2, threshold)
    false_rate = stats.beta.ppf(0.995, false + 1, runs - false)
    true_rate = stats.beta.ppf(0.005, true, runs - true + 1)
    return math.log(max(true_rate - delta, 1e-12) / false_rate)


@pytest.mark.parametrize("factorization", [BandedSquareRoot(4), BandedSquareRoot(2), Identity()])
def test_the_audit_stays_below_the_claim_and_finds_half_the_noise(factorization: Factorization) -> None:
    epsilon, delta = 1.0, 1e-3
    strategy = factorization.strategy(Workload.sgd(MOMENTUM), SCHEDULE, 1)
    accounting = FixedOrderAccounting(strategy, gaussian_noise_multiplier(epsilon, delta), delta)
    honest = epsilon_lower_bound(strategy, accounting.noise_std, delta)
    assert 0.25 * epsilon < honest <= epsilon
    assert epsilon_lower_bound(strategy, accounting.noise_std / 2, delta) > epsilon
    forgotten = accounting.noise_std / strategy.sensitivity()
    assert epsilon_lower_bound(strategy, forgotten, delta) > epsilon


def test_at_equal_epsilon_bsr_ends_closer_than_independent_noise() -> None:
    """The convex toy: distance of all noisy iterates to the noiseless ones."""
    noise_multiplier = gaussian_noise_multiplier(1.0, 1e-5)

    def error(factorization: Factorization) -> tuple[float, float]:
        strategy = factorization.strategy(Workload.sgd(MOMENTUM), SCHEDULE, 1)
        std = FixedOrderAccounting(strategy, noise_multiplier, 1e-5).noise_std
        noisy = released_models(strategy, std, True, 4000, 5) - released_models(strategy, 0.0, True, 4000, 5)
        return float(noisy.square().mean().sqrt()), RATE * noise_multiplier * strategy.expected_error()

    for factorization in (BandedSquareRoot(), Identity()):
        measured, stated = error(factorization)
        assert measured == pytest.approx(stated, rel=0.03)
    assert error(BandedSquareRoot())[0] < 0.8 * error(Identity())[0]
