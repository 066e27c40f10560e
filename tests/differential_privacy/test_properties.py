"""Square roots, sensitivities and the Gaussian mechanism for all numbers that Hypothesis draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_methods.differential_privacy import functional as F
from tests.differential_privacy.references import (
    column_norm_sensitivity,
    dense_decoder_norm,
    exhaustive_sensitivity,
    integrated_gaussian_delta,
    lower_toeplitz,
    simulated_workload,
)
from tests.properties import SEED, normal

STEPS, MOMENTUM, DECAY = st.integers(1, 24), st.floats(0.0, 0.95), st.floats(0.5, 1.0)
FEW, SMALL = st.integers(1, 9), st.integers(1, 4)


def _product(one: Tensor, two: Tensor) -> Tensor:
    return torch.stack([(one[: t + 1] * two[: t + 1].flip(0)).sum() for t in range(len(one))])


@given(STEPS, MOMENTUM, DECAY)
def test_the_square_root_squared_is_the_workload(steps: int, momentum: float, decay: float) -> None:
    root = F.banded_square_root_coefficients(steps, momentum, decay)
    workload, unit = F.sgd_workload(steps, momentum, decay), torch.eye(steps, dtype=torch.float64)[0]
    torch.testing.assert_close(_product(root, root), workload, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(F.series_square_root(workload, steps), root, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(_product(root, F.series_inverse(root, steps)), unit, rtol=0, atol=1e-7)
    inverse = F.banded_inverse_square_root_coefficients(steps, momentum, decay)
    torch.testing.assert_close(_product(root, inverse), unit, rtol=0, atol=1e-9)


@given(st.integers(2, 40), st.integers(1, 6), st.integers(1, 8), st.integers(1, 8))
def test_sensitivity_grows_with_participations_and_band_and_never_shrinks(
    steps: int, times: int, separation: int, bandwidth: int
) -> None:
    def of(band: int, count: int) -> float:
        return F.toeplitz_sensitivity(F.banded_square_root_coefficients(band), steps, count, separation)

    assert of(bandwidth, times + 1) >= of(bandwidth, times) - 1e-9
    assert of(bandwidth + 1, times) >= of(bandwidth, times) - 1e-9
    fits = 1 + (steps - 1) // separation
    assert of(1, times) == pytest.approx(math.sqrt(min(times, fits)))


@given(SEED, FEW, SMALL, SMALL)
def test_sensitivities_are_those_of_an_exhaustive_search(seed: int, steps: int, times: int, separation: int) -> None:
    column = normal(seed, steps)
    column[0] = column[0].abs() + 0.1
    majorant = F.non_increasing_majorant(column)
    assert majorant.tolist() == [float(column[i:].abs().max()) for i in range(steps)]
    found = F.toeplitz_sensitivity(majorant, steps, times, separation)
    assert found == pytest.approx(exhaustive_sensitivity(lower_toeplitz(majorant.numpy(), steps), times, separation))
    banded = torch.from_numpy(lower_toeplitz(column[:separation].numpy(), steps)) * (1 + torch.arange(steps))
    found = F.banded_sensitivity(banded, times, separation)
    assert found == pytest.approx(column_norm_sensitivity(banded.numpy(), times, separation))
    assert found == pytest.approx(exhaustive_sensitivity(banded.numpy(), times, separation))


@given(FEW, FEW, SMALL, SMALL, MOMENTUM, DECAY)
def test_errors_are_those_of_dense_matrices(
    steps: int, bandwidth: int, times: int, separation: int, momentum: float, decay: float
) -> None:
    column = F.banded_square_root_coefficients(bandwidth, momentum, decay)
    workload = simulated_workload(steps, momentum, decay)
    norm = dense_decoder_norm(lower_toeplitz(column.numpy(), steps), workload)
    assert F.decoder_norm(column, F.sgd_workload(steps, momentum, decay)) == pytest.approx(norm, rel=1e-9)
    found = F.expected_error(column, steps, times, separation, momentum, decay)
    assert found == pytest.approx(norm * F.toeplitz_sensitivity(column, steps, times, separation))


@given(SMALL, SMALL, st.integers(1, 20), MOMENTUM, DECAY)
def test_no_strategy_errs_less_than_the_bound(
    times: int, separation: int, bandwidth: int, momentum: float, decay: float
) -> None:
    steps = times * separation
    column = F.banded_square_root_coefficients(bandwidth, momentum, decay)
    found = F.expected_error(column, steps, times, separation, momentum, decay)
    assert found >= F.lower_bound(steps, times, momentum, decay) * (1 - 1e-9)


@given(SEED, FEW, MOMENTUM, DECAY, st.integers(1, 9))
def test_a_schedule_is_the_optimizer_run_on_unit_gradients(
    seed: int, steps: int, momentum: float, decay: float, bandwidth: int
) -> None:
    rates = normal(seed, steps).abs() + 0.1
    workload = F.schedule_workload(rates, momentum, decay)
    constant = F.schedule_workload(torch.full((steps,), 0.3), momentum, decay)
    torch.testing.assert_close(
        constant, torch.from_numpy(0.3 * simulated_workload(steps, momentum, decay)), atol=1e-7, rtol=1e-6
    )
    for source in range(steps):
        velocity = position = 0.0
        for step in range(steps):
            velocity = momentum * velocity + float(step == source)
            position = decay * position + float(rates[step]) * velocity
            assert float(workload[step, source]) == pytest.approx(position, rel=1e-9, abs=1e-12)
    root = F.matrix_square_root(workload)
    torch.testing.assert_close(root @ root, workload, rtol=1e-5, atol=1e-6)
    cut = F.matrix_square_root(workload, bandwidth)
    assert np.array_equal(cut.numpy(), np.triu(root.numpy(), 1 - bandwidth))


@given(st.floats(1e-3, 1.0), st.floats(0.0, 0.95), st.floats(0.0, 1.0))
def test_coupled_decay_is_a_workload_of_two_real_roots(rate: float, momentum: float, decay: float) -> None:
    roots = F.torch_sgd_roots(rate, momentum, decay)
    total = 1 + momentum - rate * decay
    if roots is None:
        assert total <= 0 or total * total < 4 * momentum
        return
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([p], lr=rate, momentum=momentum, weight_decay=decay)
    moved = []
    for step in range(6):
        p.grad = torch.full_like(p, float(step == 0))
        optimizer.step()
        moved.append(-p.item() / rate)
    expected = F.sgd_workload(6, min(roots[1], 1 - 1e-12), roots[0])
    assert moved == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-9)


@given(st.floats(0.05, 8.0), st.floats(1e-9, 0.5))
def test_the_gaussian_mechanism_keeps_its_budget(epsilon: float, delta: float) -> None:
    noise = F.gaussian_noise_multiplier(epsilon, delta)
    assert F.gaussian_delta(noise, epsilon) <= delta
    assert F.gaussian_delta(noise * (1 - 1e-6), epsilon) > delta
    assert F.gaussian_epsilon(noise, delta) == pytest.approx(epsilon, rel=1e-6)
    assert F.gaussian_delta(noise, 2 * epsilon) < F.gaussian_delta(noise, epsilon) < F.gaussian_delta(noise, 0.0)
    if noise < 20:  # where the quadrature is exact
        assert F.gaussian_delta(noise, epsilon) == pytest.approx(integrated_gaussian_delta(noise, epsilon), rel=1e-6)
