"""Every factorization through one interface: its noise, its sensitivity, its error."""

import numpy as np
import pytest
import torch

from lit_methods.differential_privacy import (
    BandedInverseSquareRoot,
    BandedSquareRoot,
    BestClosedForm,
    CorrelatedNoise,
    Factorization,
    Identity,
    OptimalBandedToeplitz,
    Participation,
    Workload,
)
from lit_methods.differential_privacy.figures import error_curves
from tests.differential_privacy.references import (
    column_norm_sensitivity,
    dense_decoder_norm,
    exhaustive_sensitivity,
    lower_toeplitz,
)

WORKLOAD, SCHEDULE = Workload.sgd(0.9, 0.999), Participation(14, 3, 5)
NESTEROV = Workload.from_optimizer(
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9, nesterov=True)
)
RULES = [
    BandedSquareRoot(),
    BandedSquareRoot(3),
    Identity(),
    BandedInverseSquareRoot(3),
    BandedInverseSquareRoot(1),
    OptimalBandedToeplitz(),
    BestClosedForm(),
]


@pytest.mark.parametrize("workload", [WORKLOAD, NESTEROV], ids=["momentum", "nesterov"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_sensitivity_and_error_against_dense_algebra(rule: Factorization, workload: Workload) -> None:
    strategy = rule.strategy(workload, SCHEDULE, 10)
    encoder = lower_toeplitz(strategy.coefficients.numpy(), 14)
    matrix = lower_toeplitz(workload.first_column(14).numpy(), 14)
    sensitivity = exhaustive_sensitivity(encoder, 3, 5)
    assert strategy.sensitivity() == pytest.approx(sensitivity, rel=1e-9)
    assert strategy.decoder_norm() == pytest.approx(dense_decoder_norm(encoder, matrix), rel=1e-9)
    assert strategy.expected_error() == pytest.approx(sensitivity * dense_decoder_norm(encoder, matrix), rel=1e-9)
    prefix = exhaustive_sensitivity(encoder[:9, :9], 3, 5)
    assert strategy.sensitivity(9) == pytest.approx(prefix, rel=1e-9)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("block_size", [None, 1, 4])
def test_the_noise_is_what_the_strategy_says(rule: Factorization, block_size: int | None) -> None:
    strategy = rule.strategy(WORKLOAD, SCHEDULE, 10)
    noise = CorrelatedNoise.of(strategy, 40, generator_seed=2, block_size=block_size, dtype=torch.float64)
    outputs = torch.stack([noise.next().clone() for _ in range(14)])
    generator = torch.Generator().manual_seed(2)
    normals = torch.stack([torch.empty(40, dtype=torch.float64).normal_(generator=generator) for _ in range(14)])
    encoder = lower_toeplitz(strategy.coefficients.numpy(), 14)
    assert np.abs(encoder @ outputs.numpy() - normals.numpy()).max() < 1e-12


@pytest.mark.parametrize("at", range(1, 13))
def test_inverse_noise_resumes_bit_for_bit(at: int) -> None:
    strategy = BandedInverseSquareRoot(7).strategy(WORKLOAD, SCHEDULE, 10)
    whole = CorrelatedNoise.of(strategy, 8, generator_seed=1, block_size=3)
    expected = [whole.next().clone() for _ in range(14)]
    first = CorrelatedNoise.of(strategy, 8, generator_seed=1, block_size=3)
    for _ in range(at):
        first.next()
    second = CorrelatedNoise.of(strategy, 8, block_size=3)
    second.load_state_dict(first.state_dict())
    for vector in expected[at:]:
        assert torch.equal(second.next(), vector)


def test_the_numerical_optimum_is_better_than_bsr_and_bsr_is_close() -> None:
    for steps, times in ((64, 4), (200, 2), (300, 1)):
        schedule = Participation(steps, times, steps // times)
        for workload in (Workload.sgd(), WORKLOAD):
            best = OptimalBandedToeplitz().strategy(workload, schedule, 1)
            bsr = BandedSquareRoot().strategy(workload, schedule, 1)
            assert best.expected_error() < bsr.expected_error() < 1.08 * best.expected_error()
            encoder = lower_toeplitz(best.coefficients.numpy(), steps)
            exact = column_norm_sensitivity(encoder, times, schedule.separation)
            assert best.sensitivity() == pytest.approx(exact, rel=1e-9)


def test_the_optimum_is_stationary() -> None:
    schedule = Participation(60, 3, 20)
    best = OptimalBandedToeplitz(6).strategy(WORKLOAD, schedule, 1)
    for lag in range(1, 6):
        for change in (-1e-3, 1e-3):
            moved = best.coefficients.clone()
            moved[lag] += change
            assert type(best)(best.name, moved, WORKLOAD, schedule).expected_error() > best.expected_error()


def test_memory_bounds_the_bandwidth() -> None:
    schedule = Participation(1000, 10, 100)
    dimension = 2**20
    assert BandedSquareRoot(memory_mib=1024).strategy(WORKLOAD, schedule, 1000).bandwidth == 100
    assert BandedSquareRoot(memory_mib=40).strategy(WORKLOAD, schedule, dimension).bandwidth == 11
    assert BandedSquareRoot(memory_mib=0).strategy(WORKLOAD, schedule, dimension).bandwidth == 1


def test_best_closed_form_takes_bisr_when_memory_is_short_and_bsr_else(caplog: pytest.LogCaptureFixture) -> None:
    schedule, workload = Participation(790, 10, 79), Workload.sgd(0.9, 0.9999)
    with caplog.at_level("INFO"):
        scarce = BestClosedForm(memory_mib=12).strategy(workload, schedule, 2**20)
    assert (scarce.name, scarce.bandwidth) == ("BISR", 4)
    assert scarce.expected_error() == pytest.approx(100.9, abs=0.05)
    assert "BISR with p=4 has the least expected error: 100.9" in caplog.text
    ample = BestClosedForm(memory_mib=1024).strategy(workload, schedule, 2**20)
    assert (ample.name, ample.bandwidth) == ("BSR", 79)
    assert BestClosedForm(memory_mib=12, banded_only=True).strategy(workload, schedule, 2**20).name == "BSR"


def test_error_curves_start_at_independent_noise() -> None:
    curves = error_curves(WORKLOAD, Participation(60, 3, 20), 20)
    identity = Identity().strategy(WORKLOAD, Participation(60, 3, 20), 1).expected_error()
    for points in curves.values():
        assert points[0] == (1, pytest.approx(identity))
        assert points[-1][0] == 20


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="bandwidth must be at least 1"):
        BandedInverseSquareRoot(0)
    with pytest.raises(ValueError, match="bandwidth must be at least 1"):
        OptimalBandedToeplitz(0)
    with pytest.raises(ValueError, match="bandwidth=6 passes the separation of 5"):
        OptimalBandedToeplitz(6).strategy(WORKLOAD, SCHEDULE, 1)
    with pytest.raises(ValueError, match=r"memory_mib=-1\.0 must be at least 0, and finite"):
        BestClosedForm(memory_mib=-1.0).strategy(WORKLOAD, SCHEDULE, 1)
    with pytest.raises(ValueError, match="separation must be at least 1, but is 0"):
        Participation(4, 1, 0)
