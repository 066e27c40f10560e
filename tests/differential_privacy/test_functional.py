"""The coefficients, workloads and errors against exact fractions, dense algebra, PyTorch's SGD and recorded numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import linalg, signal

from lit_methods.differential_privacy import functional as F
from tests.differential_privacy import references

PAIRS = [(0.0, 1.0), (0.9, 1.0), (0.9, 0.999), (0.0, 0.9999), (0.3, 0.9), (0.99, 1.0)]
EVERY_PAIR = pytest.mark.parametrize(("momentum", "decay"), PAIRS)
OFF_THE_GRID = [(0.9, 0.9), (0.9, 0.5), (0.5, 0.5), (0.0, 0.01), (0.999, 0.9999)]


@pytest.mark.parametrize(("momentum", "decay"), PAIRS + OFF_THE_GRID)
def test_coefficients_equal_theorem_1_in_exact_fractions(momentum: float, decay: float) -> None:
    exact = references.exact_coefficients(48, Fraction(momentum), Fraction(decay))
    ours = F.banded_square_root_coefficients(48, momentum, decay)
    assert ours.dtype == torch.float64
    assert ours.tolist() == pytest.approx([float(c) for c in exact], rel=1e-12)


@pytest.mark.parametrize("row", references.recorded("coefficients"), ids=str)
def test_coefficients_equal_the_recorded_ones(row: dict) -> None:
    ours = F.banded_square_root_coefficients(256, row["momentum"], row["weight_decay_factor"]).tolist()
    assert ours[:8] == pytest.approx(row["first"], rel=1e-14)
    assert [ours[63], ours[255]] == pytest.approx([row["c63"], row["c255"]], rel=1e-11)


@EVERY_PAIR
def test_three_ways_to_the_square_root_agree(momentum: float, decay: float) -> None:
    closed_form = F.banded_square_root_coefficients(64, momentum, decay).numpy()
    dense = linalg.sqrtm(references.simulated_workload(64, momentum, decay))
    np.testing.assert_allclose(closed_form, np.real(dense)[:, 0], rtol=0, atol=3e-14)
    series = F.series_square_root(F.sgd_workload(64, momentum, decay), 64)
    np.testing.assert_allclose(closed_form, series, rtol=0, atol=1e-12)


@EVERY_PAIR
def test_the_square_of_the_full_root_is_the_workload(momentum: float, decay: float) -> None:
    root = F.banded_square_root_coefficients(256, momentum, decay).numpy()
    workload = references.simulated_workload(256, momentum, decay)[:, 0]
    np.testing.assert_allclose(
        np.convolve(root, root)[:256], workload, rtol=0, atol=1e-12 * max(1.0, 0.1 / (1 - momentum))
    )


@pytest.mark.parametrize(("momentum", "decay"), PAIRS + OFF_THE_GRID)
def test_workload_equals_the_simulated_update_rule(momentum: float, decay: float) -> None:
    ours = references.lower_toeplitz(F.sgd_workload(40, momentum, decay).numpy(), 40)
    np.testing.assert_allclose(ours, references.simulated_workload(40, momentum, decay), rtol=1e-13)


@EVERY_PAIR
@pytest.mark.parametrize("bandwidth", [1, 2, 3, 100])
def test_a_band_is_a_prefix_of_the_root(bandwidth: int, momentum: float, decay: float) -> None:
    full = F.banded_square_root_coefficients(100, momentum, decay)
    assert torch.equal(F.banded_square_root_coefficients(bandwidth, momentum, decay), full[:bandwidth])


@pytest.mark.parametrize("seed", range(8))
def test_coefficients_are_positive_decreasing_log_convex_and_bounded(seed: int) -> None:
    momentum, decay = np.sort(np.random.default_rng(seed).uniform(0.0, 1.0, 2)).tolist()
    c = F.banded_square_root_coefficients(200, momentum, decay).numpy()
    j = np.arange(200)
    assert (c > 0).all()
    assert (np.diff(c) < 0).all()
    assert (c[1:-1] ** 2 <= c[:-2] * c[2:] * (1 + 1e-12)).all()
    assert (c >= decay**j / (2 * np.sqrt(j + 1))).all()
    assert (c <= decay ** (j + 1) / ((decay - momentum) * np.sqrt(j + 1))).all()


@EVERY_PAIR
def test_coefficients_stay_accurate_far_out(momentum: float, decay: float) -> None:
    last = 20_000
    c = float(F.banded_square_root_coefficients(last + 1, momentum, decay)[last])
    assert c == pytest.approx(decay**last / math.sqrt(math.pi * last * (1 - momentum / decay)), rel=5e-3, abs=1e-300)


@pytest.mark.parametrize("seed", range(5))
def test_series_root_squares_to_any_series(seed: int) -> None:
    series = np.random.default_rng(seed).normal(size=24)
    series[0] = 0.5 + abs(series[0])
    root = F.series_square_root(series, 24).numpy()
    np.testing.assert_allclose(np.convolve(root, root)[:24], series, atol=1e-10 * np.abs(root).max() ** 2)
    np.testing.assert_array_equal(F.series_square_root(series, 5), root[:5])


@pytest.mark.parametrize("row", references.recorded("torch_sgd"), ids=str)
def test_torch_sgd_roots_equal_the_recorded_ones(row: dict) -> None:
    roots = F.torch_sgd_roots(row["learning_rate"], row["momentum"], row["weight_decay"])
    assert roots == pytest.approx((row["alpha"], row["beta"]), rel=1e-12)


def torch_sgd_impulse(steps: int, **options: float) -> list[float]:
    """What a unit gradient at the first step does to a weight that starts at zero, over `-lr`."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], **options)
    positions = []
    for step in range(steps):
        weight.grad = torch.full((1,), float(step == 0), dtype=torch.float64)
        optimizer.step()
        positions.append(-weight.item() / options["lr"])
    return positions


@pytest.mark.parametrize(
    ("lr", "momentum", "weight_decay"),
    [(0.1, 0.9, 5e-4), (0.1, 0.0, 5e-4), (0.5, 0.9, 1e-3), (0.1, 0.9, 0.0), (1.0, 0.0, 0.3), (0.05, 0.5, 1.0)],
)
def test_torch_sgd_itself_follows_the_mapped_workload(lr: float, momentum: float, weight_decay: float) -> None:
    roots = F.torch_sgd_roots(lr, momentum, weight_decay)
    assert roots is not None
    decay_factor, mapped_momentum = roots
    ours = F.sgd_workload(256, mapped_momentum, decay_factor).tolist()
    simulated = torch_sgd_impulse(256, lr=lr, momentum=momentum, weight_decay=weight_decay)
    assert ours == pytest.approx(simulated, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize(("lr", "momentum", "weight_decay"), [(0.1, 0.9, 0.1), (1.0, 0.5, 0.5), (1.0, 0.0, 2.5)])
def test_torch_sgd_outside_the_family_has_no_roots(lr: float, momentum: float, weight_decay: float) -> None:
    assert F.torch_sgd_roots(lr, momentum, weight_decay) is None


@pytest.mark.parametrize("row", references.recorded("impulse_response"), ids=str)
def test_the_noise_recurrence_is_stable_with_the_recorded_gain(row: dict) -> None:
    c = F.banded_square_root_coefficients(row["bandwidth"], row["momentum"], row["weight_decay_factor"]).numpy()
    assert abs(np.roots(c)).max() == pytest.approx(row["spectral_radius"], rel=1e-9)
    assert math.sqrt(c @ c) == pytest.approx(row["column_norm"], rel=1e-12)
    response = signal.lfilter([1.0], c, np.eye(1, 40_000)[0])
    assert math.sqrt(response @ response) == pytest.approx(row["gain"], rel=1e-6)


@pytest.mark.parametrize("bad", [0, -3])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("bandwidth", lambda n: F.banded_square_root_coefficients(n)),
        ("bandwidth", lambda n: F.series_square_root([1.0, 1.0], n)),
        ("steps", lambda n: F.sgd_workload(n)),
    ],
)
def test_counts_below_one_are_refused(name: str, call: Callable[[int], torch.Tensor], bad: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{bad}"):
        call(bad)


@pytest.mark.parametrize("function", [F.banded_square_root_coefficients, F.sgd_workload])
def test_parameters_out_of_range_are_refused(function: Callable[..., torch.Tensor]) -> None:
    for momentum in (-0.1, 1.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"momentum.*{momentum}"):
            function(4, momentum=momentum)
    for decay in (0.0, -0.5, 1.0001, math.nan):
        with pytest.raises(ValueError, match=f"weight_decay_factor.*{decay}"):
            function(4, weight_decay_factor=decay)


def test_series_that_have_no_root_are_refused() -> None:
    for series in ([0.0, 1.0], [-1.0, 1.0], [math.nan, 1.0], [], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="workload"):
            F.series_square_root(series, 1)
    with pytest.raises(ValueError, match=r"workload.*bandwidth=3"):
        F.series_square_root([1.0, 2.0], 3)
