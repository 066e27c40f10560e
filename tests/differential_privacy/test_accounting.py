"""The Gaussian mechanism and the fixed-order budget against quadrature, dp_accounting and recorded numbers."""

from __future__ import annotations

import math

import pytest

from lit_methods.differential_privacy import functional as F
from lit_methods.differential_privacy.accounting import FixedOrderAccounting
from lit_methods.differential_privacy.factorization import BandedSquareRoot, Identity, Participation
from lit_methods.differential_privacy.workload import Workload
from tests.differential_privacy import references

GAUSSIAN = references.recorded("gaussian")
BUDGETS = [(1e-3, 1e-5), (0.1, 1e-9), (1.0, 1e-5), (2.0, 1e-12), (8.0, 1e-5), (8.0, 0.3), (50.0, 1e-7), (800.0, 1e-6)]


@pytest.mark.parametrize("noise_multiplier", [0.05, 0.3, 0.54, 1.0, 4.0, 60.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.5, 2.0, 9.0, 40.0])
def test_delta_equals_the_integral_of_the_excess(noise_multiplier: float, epsilon: float) -> None:
    integrated = references.integrated_gaussian_delta(noise_multiplier, epsilon)
    assert F.gaussian_delta(noise_multiplier, epsilon) == pytest.approx(integrated, rel=1e-9, abs=1e-200)


@pytest.mark.parametrize("noise_multiplier", [0.2, 1.0, 7.0])
def test_delta_at_epsilon_zero_is_the_total_variation(noise_multiplier: float) -> None:
    assert F.gaussian_delta(noise_multiplier, 0.0) == pytest.approx(
        math.erf(1 / (2 * math.sqrt(2) * noise_multiplier)), rel=1e-12
    )


@pytest.mark.parametrize("row", GAUSSIAN, ids=str)
def test_noise_multiplier_equals_the_recorded_one(row: dict) -> None:
    ours = F.gaussian_noise_multiplier(row["epsilon"], row["delta"])
    assert ours == pytest.approx(row["analytic"], rel=1e-11)
    assert ours == pytest.approx(row["pld"], rel=1e-6)
    assert ours < row["rdp"]


@pytest.mark.parametrize(("epsilon", "delta"), BUDGETS)
def test_noise_multiplier_is_enough_and_hardly_more(epsilon: float, delta: float) -> None:
    ours = F.gaussian_noise_multiplier(epsilon, delta)
    assert F.gaussian_delta(ours, epsilon) <= delta
    assert F.gaussian_delta(ours * (1 - 1e-9), epsilon) > delta
    assert references.integrated_gaussian_delta(ours, epsilon) <= delta * (1 + 1e-9)


@pytest.mark.parametrize(("epsilon", "delta"), BUDGETS)
def test_epsilon_inverts_the_noise_multiplier(epsilon: float, delta: float) -> None:
    spent = F.gaussian_epsilon(F.gaussian_noise_multiplier(epsilon, delta), delta)
    assert spent == pytest.approx(epsilon, rel=1e-8)


@pytest.mark.parametrize(("noise_multiplier", "delta"), [(0.54, 1e-5), (3.0, 1e-6)])
def test_epsilon_agrees_with_dp_accounting(noise_multiplier: float, delta: float) -> None:
    dp_accounting = pytest.importorskip("dp_accounting")
    accountant = dp_accounting.pld.PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(noise_multiplier))
    assert F.gaussian_epsilon(noise_multiplier, delta) == pytest.approx(accountant.get_epsilon(delta), rel=1e-6)


def test_the_notebooks_rounded_noise_spends_more_than_it_says() -> None:
    assert F.gaussian_epsilon(0.54, 1e-5) == pytest.approx(9.0967, abs=5e-5)


def test_epsilon_at_the_ends_of_the_range() -> None:
    assert F.gaussian_epsilon(0.0, 1e-5) == math.inf
    assert F.gaussian_epsilon(math.inf, 1e-5) == 0.0
    assert F.gaussian_epsilon(1.0, 0.5) == 0.0
    assert F.gaussian_epsilon(1e-3, 1e-5) == pytest.approx(0.5e6 + 4264.9, rel=1e-5)


def spent(step: int, bandwidth: int = 16) -> float:
    column = F.banded_square_root_coefficients(bandwidth, momentum=0.9)
    ratio = F.toeplitz_sensitivity(column, 1000, 10, 100) / F.toeplitz_sensitivity(column, step, 10, 100)
    return F.gaussian_epsilon(F.gaussian_noise_multiplier(8.0, 1e-5) * ratio, 1e-5)


@pytest.mark.parametrize("row", references.recorded("epsilon_after"), ids=str)
def test_budget_spent_after_a_prefix_of_the_run(row: dict) -> None:
    assert spent(row["step"]) == pytest.approx(row["epsilon"], abs=5.1e-4)


def test_budget_never_decreases_and_jumps_where_an_epoch_starts() -> None:
    budget = [spent(step) for step in range(1, 302)]
    assert budget == sorted(budget)
    assert budget[99] == budget[15]
    assert budget[100] > budget[99] + 0.1


@pytest.mark.parametrize("rule", [BandedSquareRoot(16), Identity()])
def test_fixed_order_accounting_tells_the_same(rule: BandedSquareRoot | Identity) -> None:
    strategy = rule.strategy(Workload.sgd(momentum=0.9), Participation(1000, 10, 100), dimension=10)
    accounting = FixedOrderAccounting(strategy, F.gaussian_noise_multiplier(8.0, 1e-5), 1e-5)
    assert accounting.epsilon_after(0) == 0.0
    for step in (1, 100, 101, 500, 1000):
        assert accounting.epsilon_after(step) == pytest.approx(spent(step, strategy.bandwidth), rel=1e-9)
    wanted = F.gaussian_noise_multiplier(8.0, 1e-5) * F.toeplitz_sensitivity(strategy.coefficients, 1000, 10, 100)
    assert wanted <= accounting.noise_std <= wanted * (1 + 1e-5)
    assert FixedOrderAccounting(strategy, 0.0, 1e-5).epsilon_after(1) == math.inf


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_impossible_epsilons_are_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match=f"epsilon.*{epsilon}"):
        F.gaussian_noise_multiplier(epsilon, 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_impossible_deltas_are_refused(delta: float) -> None:
    for function in (F.gaussian_noise_multiplier, F.gaussian_epsilon):
        with pytest.raises(ValueError, match=f"delta.*{delta}"):
            function(1.0, delta)


def test_impossible_noise_is_refused() -> None:
    for noise in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"noise_multiplier.*{noise}"):
            F.gaussian_epsilon(noise, 1e-5)
        with pytest.raises(ValueError, match=f"noise_multiplier.*{noise}"):
            F.gaussian_delta(noise, 1.0)
