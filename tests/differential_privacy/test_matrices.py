"""Inverse square roots, general matrices and the bound below, against the reference tables and dense algebra."""

from typing import Any

import numpy as np
import pytest
import torch

from lit_methods.differential_privacy import functional as F
from tests.differential_privacy.references import exhaustive_sensitivity, recorded


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 1.0), (0.9, 1.0), (0.9, 0.999), (0.99, 0.9999)])
def test_bisr_coefficients_invert_the_square_root(momentum: float, decay: float) -> None:
    noising = F.banded_inverse_square_root_coefficients(128, momentum, decay).numpy()
    root = F.banded_square_root_coefficients(128, momentum, decay).numpy()
    product = np.convolve(noising, root)[:128]
    assert np.abs(product - np.eye(1, 128)[0]).max() < 1e-12
    workload = F.sgd_workload(128, momentum, decay).numpy()
    assert np.abs(np.convolve(np.convolve(noising, noising)[:128], workload)[:128] - np.eye(1, 128)[0]).max() < 1e-11


def test_bisr_starts_as_published() -> None:
    assert F.banded_inverse_square_root_coefficients(5).tolist() == [1.0, -0.5, -0.125, -0.0625, -0.0390625]


def test_the_notebooks_bisr_sensitivity() -> None:
    noising = F.banded_inverse_square_root_coefficients(4, 0.9, 0.9999)
    sensitivity = F.toeplitz_sensitivity(F.series_inverse(noising, 781), 781, 11, 78)
    assert sensitivity == pytest.approx(10.614968211, rel=1e-9)


def test_series_inverse_is_an_inverse() -> None:
    series = torch.tensor([2.0, -1.0, 0.3, 0.7], dtype=torch.float64)
    inverse = F.series_inverse(series, 30)
    assert np.abs(np.convolve(series, inverse)[:30] - np.eye(1, 30)[0]).max() < 1e-12


def test_majorant_is_the_least_non_increasing_one() -> None:
    assert F.non_increasing_majorant([1.0, -2.0, 0.5, 0.7, -0.1]).tolist() == [2.0, 2.0, 0.7, 0.7, 0.1]


@pytest.mark.parametrize("seed", range(6))
def test_banded_sensitivity_is_the_best_pattern(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    full = torch.randn(14, 14, generator=generator, dtype=torch.float64)
    strategy = torch.tril(full) - torch.tril(full, -3)
    strategy.diagonal().abs_().add_(0.1)
    for participations, separation in ((1, 3), (2, 3), (3, 4), (9, 5)):
        found = F.banded_sensitivity(strategy, participations, separation)
        assert found == pytest.approx(exhaustive_sensitivity(strategy.numpy(), participations, separation), rel=1e-12)


def test_toeplitz_sensitivity_of_mixed_signs_is_exact_within_the_separation() -> None:
    column = [1.0, -0.5, 0.8]
    strategy = sum(np.diag(np.full(12 - j, c), -j) for j, c in enumerate(column))
    exact = F.banded_sensitivity(torch.from_numpy(strategy), 3, 4)
    assert F.toeplitz_sensitivity(column, 12, 3, 4) == pytest.approx(exact, rel=1e-12)


def test_numerical_square_root_of_a_schedule() -> None:
    rates = torch.linspace(1.0, 0.1, 40, dtype=torch.float64)
    workload = F.schedule_workload(rates, 0.9, 0.99)
    slow = torch.zeros(40, 40, dtype=torch.float64)
    for start in range(40):
        velocity, position = 0.0, 0.0
        for step in range(start, 40):
            velocity = 0.9 * velocity + float(step == start)
            position = 0.99 * position + float(rates[step]) * velocity
            slow[step, start] = position
    torch.testing.assert_close(workload, slow, rtol=1e-12, atol=1e-14)
    root = F.matrix_square_root(workload)
    torch.testing.assert_close(root @ root, workload, rtol=1e-10, atol=1e-12)
    assert torch.equal(root, root.tril())
    banded = F.matrix_square_root(workload, 5)
    torch.testing.assert_close(banded, root.tril() - root.tril(-5))
    constant = F.matrix_square_root(F.schedule_workload([1.0] * 30, 0.9, 0.99))
    torch.testing.assert_close(constant[:, 0], F.banded_square_root_coefficients(30, 0.9, 0.99))


@pytest.mark.parametrize("row", [row for row in recorded("table") if row["steps"] <= 256], ids=str)
def test_lower_bound(row: dict[str, Any]) -> None:
    bound = F.lower_bound(row["steps"], row["participations"], row["momentum"], row["weight_decay_factor"])
    assert bound == pytest.approx(row["lower_bound"], rel=1e-9)
    assert bound <= row["error"]


@pytest.mark.parametrize("row", recorded("bisr"), ids=str)
def test_bisr_table(row: dict[str, Any]) -> None:
    noising = F.banded_inverse_square_root_coefficients(row["bandwidth"], row["momentum"], row["weight_decay_factor"])
    schedule = row["steps"], row["participations"], row["separation"]
    column = F.series_inverse(noising, row["steps"])
    assert F.toeplitz_sensitivity(column, *schedule) == pytest.approx(row["sensitivity"], rel=1e-9)
    error = F.expected_error(column, *schedule, row["momentum"], row["weight_decay_factor"])
    assert error == pytest.approx(row["error"], rel=1e-9)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: F.matrix_square_root(torch.ones(3, 3)), "workload must be lower-triangular"),
        (lambda: F.matrix_square_root(torch.eye(3), 0), "bandwidth must be at least 1, but is 0"),
        (lambda: F.banded_sensitivity(torch.ones(4, 4).tril(), 2, 2), "Cut its band to the separation"),
        (lambda: F.banded_sensitivity(torch.eye(4), 0, 2), "participations and separation"),
        (lambda: F.schedule_workload([0.1, 0.0]), "learning_rates"),
        (lambda: F.schedule_workload([0.1, float("inf")]), "learning_rates"),
        (lambda: F.lower_bound(0), "steps and participations"),
        (lambda: F.series_inverse([0.0, 1.0], 4), "series must be finite with a positive first entry"),
        (lambda: F.banded_inverse_square_root_coefficients(0), "bandwidth must be a whole number"),
    ],
)
def test_bad_arguments(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
