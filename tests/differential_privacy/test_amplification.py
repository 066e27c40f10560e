"""Amplified accounting against recorded numbers, quadrature of the privacy loss, and the mechanism itself."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.utils.data import BatchSampler, SequentialSampler

from lit_methods.differential_privacy import functional as F
from lit_methods.differential_privacy.accounting import FixedOrderAccounting
from lit_methods.differential_privacy.amplification import CyclicPoissonAccounting, poisson_sampled_gaussian_epsilon
from lit_methods.differential_privacy.calibration import account, calibrate, cycle_length_errors
from lit_methods.differential_privacy.factorization import (
    BandedInverseSquareRoot,
    BandedSquareRoot,
    Identity,
    Participation,
    Strategy,
)
from lit_methods.differential_privacy.poisson import CyclicPoissonBatchSampler
from lit_methods.differential_privacy.samplers import FixedOrderBatchSampler
from lit_methods.differential_privacy.workload import Workload
from tests.differential_privacy import references

AMPLIFIED = references.recorded("amplified")
UNIQUE = [row for row in AMPLIFIED if row["momentum"] == 0]


def sampler(cycle_length: int = 4, num_examples: int = 50_000, batch_size: int = 500) -> CyclicPoissonBatchSampler:
    return CyclicPoissonBatchSampler(num_examples, batch_size, cycle_length, unsafe_seed=0)


def strategy(bandwidth: int, participation: Participation, momentum: float = 0.0) -> Strategy:
    return BandedSquareRoot(bandwidth).strategy(Workload.sgd(momentum=momentum), participation, dimension=10)


def accounting(noise_multiplier: float, bandwidth: int = 4, steps: int = 1000) -> CyclicPoissonAccounting:
    draws = sampler(bandwidth)
    made = account(strategy(bandwidth, draws.participation(steps)), draws, noise_multiplier, 1e-5)
    assert isinstance(made, CyclicPoissonAccounting)
    return made


@pytest.mark.parametrize("row", UNIQUE, ids=lambda row: f"epsilon{row['epsilon']}-p{row['bandwidth']}")
def test_recorded_noise_spends_the_recorded_budget(row: dict[str, Any]) -> None:
    spent = accounting(row["noise_multiplier"], row["bandwidth"])
    assert spent.sampling_probability == pytest.approx(row["probability"], rel=1e-12)
    assert spent.strategy.participation.participations == row["rounds"]
    assert spent.epsilon_after(1000) == pytest.approx(row["epsilon"], rel=1e-3)


@pytest.mark.parametrize("index", [2, 12, 15])
def test_calibrated_noise_equals_the_recorded_and_keeps_the_budget(index: int) -> None:
    row = UNIQUE[index]
    draws = sampler(row["bandwidth"])
    made = calibrate(strategy(row["bandwidth"], draws.participation(1000)), draws, row["epsilon"], 1e-5)
    assert made.noise_multiplier == pytest.approx(row["noise_multiplier"], rel=1e-3)
    assert made.epsilon_after(1000) <= row["epsilon"]
    assert replace(made, noise_multiplier=made.noise_multiplier * (1 - 1e-4)).epsilon_after(1000) > row["epsilon"]


@pytest.mark.parametrize("row", AMPLIFIED[::5], ids=str)
def test_noise_times_decoder_is_the_recorded_error(row: dict[str, Any]) -> None:
    workload = Workload.sgd(momentum=row["momentum"], weight_decay_factor=row["weight_decay_factor"])
    draws = sampler(row["bandwidth"])
    plan = BandedSquareRoot(row["bandwidth"]).strategy(workload, draws.participation(1000), 10)
    made = account(plan, draws, row["noise_multiplier"], 1e-5)
    error = made.noise_std * F.decoder_norm(plan.coefficients, workload.first_column(1000))
    assert error == pytest.approx(row["error"], rel=1e-5)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.05, 1e-9), (1.0, 1e-7), (30.0, 1e-3)])
def test_calibration_holds_at_the_ends_of_the_range(epsilon: float, delta: float) -> None:
    draws = sampler(8, 2_000, 25)
    made = calibrate(strategy(8, draws.participation(240)), draws, epsilon, delta)
    assert made.epsilon_after(240) <= epsilon
    assert made.epsilon_after(240) == pytest.approx(epsilon, rel=1e-4)
    unsampled = F.gaussian_noise_multiplier(epsilon, delta) * math.sqrt(30)
    assert 0.05 * unsampled < made.noise_multiplier < unsampled


def test_sampling_with_certainty_is_the_fixed_order() -> None:
    draws = sampler(100)
    assert draws.sampling_probability == 1.0
    amplified = calibrate(strategy(100, draws.participation(1000)), draws, 2.0, 1e-5)
    order = FixedOrderBatchSampler(50_000, 500)
    fixed = calibrate(strategy(100, order.participation(1000)), order, 2.0, 1e-5)
    assert amplified.noise_std == pytest.approx(fixed.noise_std, rel=1e-5)


def sampled_delta(noise: float, q: float, epsilon: float, rounds: int) -> float:
    """The larger hockey-stick divergence of the product mixture, by integration over one or two dimensions."""

    def density(x: float | np.ndarray, sampled: bool) -> Any:
        plain = stats.norm.pdf(x, 0.0, noise)
        return (1 - q) * plain + q * stats.norm.pdf(x, 1.0, noise) if sampled else plain

    found = []
    for first in (True, False):
        if rounds == 1:
            # One line of a quadrature.
            integrand = lambda x, a=first: max(density(x, a) - math.exp(epsilon) * density(x, not a), 0.0)  # noqa: E731
            found.append(integrate.quad(integrand, -12 * noise, 12 * noise + 1, limit=2000, epsabs=1e-11)[0])
        else:
            grid = np.linspace(-10 * noise, 10 * noise + 1, 2401)
            upper, lower = density(grid, first), density(grid, not first)
            excess = np.outer(upper, upper) - math.exp(epsilon) * np.outer(lower, lower)
            found.append(float(np.maximum(excess, 0.0).sum()) * (grid[1] - grid[0]) ** 2)
    return max(found)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize(("noise", "q"), [(1.0, 0.3), (0.6, 0.05), (3.0, 0.9)])
def test_epsilon_covers_the_hockey_stick_divergence_and_hardly_more(noise: float, q: float, rounds: int) -> None:
    delta = 1e-3
    epsilon = poisson_sampled_gaussian_epsilon(noise, q, rounds, delta)
    assert sampled_delta(noise, q, epsilon, rounds) <= delta * (1 + 1e-6)
    assert sampled_delta(noise, q, epsilon * (1 - 5e-3), rounds) > delta


def mechanism_delta(strategy_matrix: np.ndarray, cycle: int, group: int, q: float, noise: float, eps: float) -> float:
    """Monte Carlo estimate for the whole run: one example of one group, whose gradient is 1 in each step it joins."""
    steps = len(strategy_matrix)
    turns = range(group, steps, cycle)
    rng = np.random.default_rng(1)
    base = rng.normal(0.0, noise, (400_000, steps))
    joined = np.zeros((len(base), steps))
    joined[:, list(turns)] = rng.random((len(base), len(turns))) < q
    released = base + joined @ strategy_matrix.T
    ratio = np.zeros(len(base))
    for pattern in itertools.product((0, 1), repeat=len(turns)):
        shift = strategy_matrix[:, list(turns)] @ np.array(pattern, dtype=float)
        weight = math.prod(q if taken else 1 - q for taken in pattern)
        ratio += weight * np.exp((released @ shift - shift @ shift / 2) / noise**2)
    return float(np.maximum(1 - math.exp(eps) / ratio, 0.0).mean())


@pytest.mark.parametrize("group", [0, 1])
def test_the_run_itself_spends_at_most_what_is_told(group: int) -> None:
    draws = CyclicPoissonBatchSampler(40, 8, 2, unsafe_seed=0)
    made = account(strategy(2, draws.participation(6), momentum=0.9), draws, 1.0, 0.02)
    matrix = references.lower_toeplitz(made.strategy.coefficients.numpy(), 6)
    found = mechanism_delta(matrix, 2, group, 0.4, made.noise_std, made.epsilon_after(6))
    assert 0.3 * made.delta < found < 1.04 * made.delta


def test_columns_that_overlap_would_spend_more_than_the_theorem_says() -> None:
    told = poisson_sampled_gaussian_epsilon(1.0, 0.4, 3, 0.02)
    column = F.banded_square_root_coefficients(6, momentum=0.9).numpy()
    matrix = references.lower_toeplitz(column, 6)
    noise = float(np.linalg.norm(column))
    assert mechanism_delta(matrix, 2, 0, 0.4, noise, told) > 1.5 * 0.02


def test_budget_never_decreases_and_moves_with_the_rounds_only() -> None:
    spent = accounting(0.8, bandwidth=50, steps=1000)
    budget = [spent.epsilon_after(step) for step in range(0, 1001, 10)]
    assert budget[0] == 0.0
    assert budget == sorted(budget)
    assert spent.epsilon_after(1) == spent.epsilon_after(50) < spent.epsilon_after(51)
    assert spent.epsilon_after(5000) == budget[-1]
    assert accounting(0.0).epsilon_after(1) == math.inf
    assert spent.at(1e-7).epsilon_after(1000) > budget[-1]


def test_noise_is_measured_against_the_column_norm() -> None:
    made = accounting(1.5, bandwidth=4)
    norm = float(torch.linalg.vector_norm(F.banded_square_root_coefficients(4)))
    assert made.sensitivity == pytest.approx(norm, rel=1e-12)
    assert 1.5 * norm <= made.noise_std <= 1.5 * norm * (1 + 1e-5)
    assert "q=0.04" in made.describe()
    assert "250 rounds" in made.describe()
    assert made.adjacency == "add-or-remove"


def test_what_the_theorem_does_not_cover_is_refused() -> None:
    schedule = Participation(100, 25, 4)
    with pytest.raises(ValueError, match=r"bandwidth 5 overlap.*after 4 steps.*cycle_length"):
        CyclicPoissonAccounting(strategy(5, schedule), 1.0, 1e-5, 0.1)
    unbanded = BandedInverseSquareRoot(4).strategy(Workload.sgd(), schedule, 10)
    with pytest.raises(ValueError, match=r"BISR, whose C is not banded.*BandedSquareRoot"):
        CyclicPoissonAccounting(unbanded, 1.0, 1e-5, 0.1)
    for probability in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"sampling_probability.*{probability}"):
            CyclicPoissonAccounting(strategy(4, schedule), 1.0, 1e-5, probability)
    with pytest.raises(ValueError, match="epsilon"):
        accounting(1.0).calibrated(math.inf)


def test_noise_and_sampler_of_different_kinds_do_not_mix() -> None:
    draws, order = sampler(4), FixedOrderBatchSampler(50_000, 500)
    amplified = account(strategy(4, draws.participation(1000)), draws, 1.0, 1e-5)
    fixed = account(strategy(4, order.participation(1000)), order, 1.0, 1e-5)
    assert isinstance(amplified, CyclicPoissonAccounting)
    assert isinstance(fixed, FixedOrderAccounting)
    with pytest.raises(ValueError, match=r"FixedOrderBatchSampler tosses none.*calibrate"):
        amplified.check_sampler(order)
    with pytest.raises(ValueError, match=r"CyclicPoissonBatchSampler draws batches at random.*calibrate"):
        fixed.check_sampler(draws)
    with pytest.raises(ValueError, match=r"probability 0.08, but the noise was planned for 0.04"):
        amplified.check_sampler(sampler(4, batch_size=1000))
    with pytest.raises(ValueError, match=r"separation=4\), but the sampler gives .*separation=8"):
        amplified.check_sampler(sampler(8))
    with pytest.raises(ValueError, match=r"separation=4.*sampler gives .*separation=100"):
        calibrate(strategy(4, draws.participation(1000)), order, 2.0, 1e-5)
    foreign: Any = BatchSampler(SequentialSampler(range(10)), 2, drop_last=False)
    with pytest.raises(TypeError, match=r"Nothing is known .* BatchSampler.*FixedOrderBatchSampler or"):
        calibrate(strategy(4, draws.participation(1000)), foreign, 2.0, 1e-5)


@pytest.mark.parametrize(
    ("noise_multiplier", "delta", "match"),
    [
        (-1.0, 1e-5, "noise_multiplier.*-1.0"),
        (math.nan, 1e-5, "noise_multiplier.*nan"),
        (math.inf, 1e-5, "noise_multiplier.*inf"),
        (1.0, 1.0, "delta.*1.0"),
    ],
)
def test_bad_numbers(noise_multiplier: float, delta: float, match: str) -> None:
    draws = sampler(1)
    plan = Identity().strategy(Workload.sgd(), draws.participation(10), 10)
    with pytest.raises(ValueError, match=match):
        account(plan, draws, noise_multiplier, delta)


def test_the_error_by_cycle_length_is_that_of_a_dense_mechanism_where_all_take_part() -> None:
    steps, epsilon, delta, momentum = 6, 2.0, 1e-5, 0.5
    found = cycle_length_errors(
        Workload.sgd(momentum=momentum), num_examples=8, batch_size=8, steps=steps, epsilon=epsilon, delta=delta
    )
    workload = np.array(
        [[sum(momentum**i for i in range(t - s + 1)) if s <= t else 0.0 for s in range(steps)] for t in range(steps)]
    )
    noise = F.gaussian_noise_multiplier(epsilon, delta) * math.sqrt(steps)
    assert found == {1: pytest.approx(noise * np.linalg.norm(workload) / math.sqrt(steps), rel=1e-4)}


def test_the_error_by_cycle_length_is_that_of_the_run_that_is_then_made() -> None:
    workload, steps = Workload.sgd(momentum=0.9), 30
    found = cycle_length_errors(workload, num_examples=100, batch_size=10, steps=steps, epsilon=1.0, delta=1e-5)
    assert list(found) == [1, 2, 4, 8]
    draws = CyclicPoissonBatchSampler(100, 10, 4, unsafe_seed=7)
    made = BandedSquareRoot(4).strategy(workload, draws.participation(steps), 3)
    planned = calibrate(made, draws, 1.0, 1e-5)
    assert found[4] == pytest.approx(planned.noise_std * made.decoder_norm(), rel=1e-5)
