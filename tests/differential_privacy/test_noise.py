"""The online noise against explicit triangular solves, its covariance, resume, and independence of global state."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from lit_methods.differential_privacy.functional import banded_square_root_coefficients
from lit_methods.differential_privacy.noise import CorrelatedNoise
from tests.differential_privacy.references import Array, lower_toeplitz

IDENTITY = torch.ones(1, dtype=torch.float64)


def draw(noise: CorrelatedNoise, count: int) -> torch.Tensor:
    return torch.stack([noise.next().clone() for _ in range(count)])


def all_rows(coefficients: torch.Tensor, dimension: int, steps: int, **options: Any) -> torch.Tensor:
    return draw(CorrelatedNoise(coefficients, dimension, steps, **options), steps)


def bsr(bandwidth: int) -> torch.Tensor:
    return banded_square_root_coefficients(bandwidth, momentum=0.9, weight_decay_factor=0.999)


@pytest.mark.parametrize("block_size", [1, 5, None])
@pytest.mark.parametrize("bandwidth", [1, 16, 300])
def test_recurrence_equals_the_triangular_solve(bandwidth: int, block_size: int | None) -> None:
    options = {"generator_seed": 3, "block_size": block_size, "dtype": torch.float64}
    white = all_rows(IDENTITY, 7, 200, **options).numpy()
    noise = all_rows(bsr(bandwidth), 7, 200, **options).numpy()
    strategy = lower_toeplitz(bsr(bandwidth).numpy(), 200)
    np.testing.assert_allclose(noise, linalg.solve_triangular(strategy, white, lower=True), rtol=0, atol=1e-12)
    np.testing.assert_allclose(strategy @ noise, white, rtol=0, atol=1e-12)


def test_a_column_that_does_not_start_with_one_is_divided_by_its_start() -> None:
    options = {"generator_seed": 3, "block_size": 4, "dtype": torch.float64}
    plain, tripled = all_rows(bsr(6), 5, 30, **options), all_rows(3.0 * bsr(6), 5, 30, **options)
    torch.testing.assert_close(3.0 * tripled, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block_size", [1, None])
@pytest.mark.parametrize("bandwidth", [4, 64])
def test_float32_is_within_rounding_of_the_exact_solve(bandwidth: int, block_size: int | None) -> None:
    options = {"generator_seed": 5, "block_size": block_size}
    white = all_rows(IDENTITY, 100, 200, **options).double().numpy()
    noise = all_rows(bsr(bandwidth), 100, 200, **options)
    assert noise.dtype == torch.float32
    exact = linalg.solve_triangular(lower_toeplitz(bsr(bandwidth).numpy(), 200), white, lower=True)
    assert np.linalg.norm(noise.numpy() - exact) <= 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("block_size", [3, 8, 100, None])
@pytest.mark.parametrize("bandwidth", [1, 2, 6, 17, 90])
@pytest.mark.parametrize("steps", [1, 41])
def test_blocks_give_the_plain_recurrence(steps: int, bandwidth: int, block_size: int | None) -> None:
    plain = all_rows(bsr(bandwidth), 33, steps, generator_seed=11, block_size=1)
    blocked = all_rows(bsr(bandwidth), 33, steps, generator_seed=11, block_size=block_size)
    assert (blocked - plain).norm() <= 1e-6 * plain.norm()


def test_dimensions_past_one_tile_of_columns_are_covered() -> None:
    options = {"generator_seed": 2, "block_size": 3}
    dimension = 2 * (1 << 14) + 5
    white = all_rows(IDENTITY, dimension, 7, **options).double().numpy()
    exact = linalg.solve_triangular(lower_toeplitz(bsr(4).numpy(), 7), white, lower=True)
    np.testing.assert_allclose(all_rows(bsr(4), dimension, 7, **options).numpy(), exact, rtol=0, atol=2e-5)


def test_the_driving_noise_is_standard_normal() -> None:
    white = all_rows(IDENTITY, 20_001, 5, generator_seed=1)
    assert stats.kstest(white.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float(white.var()) - 1.0) < 0.02


@pytest.fixture(scope="module")
def many_columns() -> torch.Tensor:
    coefficients = banded_square_root_coefficients(4, momentum=0.9)
    return all_rows(coefficients, 400_000, 12, generator_seed=7)


def covariance_error(rows: torch.Tensor, coefficients: torch.Tensor) -> float:
    strategy = lower_toeplitz(coefficients.numpy(), rows.shape[0])
    inverse: Array = np.linalg.inv(strategy)
    empirical = (rows @ rows.T / rows.shape[1]).double().numpy()
    return float(np.abs(empirical - inverse @ inverse.T).max())


def test_covariance_is_the_strategys(many_columns: torch.Tensor) -> None:
    assert covariance_error(many_columns, banded_square_root_coefficients(4, momentum=0.9)) < 0.03


@pytest.mark.parametrize(
    "wrong",
    [
        banded_square_root_coefficients(3, momentum=0.9),
        banded_square_root_coefficients(5, momentum=0.9),
        banded_square_root_coefficients(4, momentum=0.88),
        banded_square_root_coefficients(4, momentum=0.9, weight_decay_factor=0.98),
        banded_square_root_coefficients(4, momentum=0.9) * 1.01,
        IDENTITY,
    ],
    ids=["narrower", "wider", "momentum", "decay", "scale", "white"],
)
def test_covariance_of_another_strategy_is_told_apart(many_columns: torch.Tensor, wrong: torch.Tensor) -> None:
    assert covariance_error(many_columns, wrong) > 0.03


def test_coordinates_are_independent(many_columns: torch.Tensor) -> None:
    left, right = many_columns.chunk(2, dim=1)
    assert float((left @ right.T / left.shape[1]).abs().max()) < 0.06


@pytest.mark.parametrize("block_size", [1, 4, 7, None])
@pytest.mark.parametrize("bandwidth", [6, 23])
def test_resume_is_bit_identical_at_every_position(bandwidth: int, block_size: int | None) -> None:
    steps, dimension = 14, 21
    whole = CorrelatedNoise(bsr(bandwidth), dimension, steps, generator_seed=13, block_size=block_size)
    states, rows = [], []
    for _ in range(steps):
        buffer = io.BytesIO()
        torch.save(whole.state_dict(), buffer)
        states.append(buffer.getvalue())
        rows.append(whole.next().clone())
    for position, state in enumerate(states):
        resumed = CorrelatedNoise(bsr(bandwidth), dimension, steps, block_size=block_size)
        resumed.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
        assert resumed.step == position
        assert torch.equal(draw(resumed, steps - position), torch.stack(rows[position:]))


def test_a_saved_state_does_not_move_with_later_draws() -> None:
    noise = CorrelatedNoise(bsr(5), 9, 20, generator_seed=1, block_size=2)
    draw(noise, 3)
    state = noise.state_dict()
    first = draw(noise, 8)
    noise.load_state_dict(state)
    assert torch.equal(draw(noise, 8), first)


@pytest.mark.parametrize(("bandwidth", "dimension"), [(5, 10), (9, 9)])
def test_a_state_of_another_shape_is_refused(bandwidth: int, dimension: int) -> None:
    state = CorrelatedNoise(bsr(bandwidth), dimension, 20, block_size=2).state_dict()
    with pytest.raises(ValueError, match="saved noise"):
        CorrelatedNoise(bsr(5), 9, 20, block_size=2).load_state_dict(state)


@pytest.mark.parametrize("block_size", [1, 4])
def test_no_vector_past_the_planned_steps(block_size: int) -> None:
    noise = CorrelatedNoise(bsr(3), 4, 6, block_size=block_size)
    draw(noise, 6)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="6"):
            noise.next()
    resumed = CorrelatedNoise(bsr(3), 4, 6, block_size=block_size)
    resumed.load_state_dict(noise.state_dict())
    with pytest.raises(RuntimeError, match="6"):
        resumed.next()


def test_the_own_seed_alone_decides() -> None:
    torch.manual_seed(0)
    first = all_rows(bsr(4), 50, 9, generator_seed=21)
    torch.manual_seed(1)
    assert torch.equal(all_rows(bsr(4), 50, 9, generator_seed=21), first)
    assert not torch.equal(all_rows(bsr(4), 50, 9, generator_seed=22), first)


def test_without_a_seed_no_two_runs_are_alike_whatever_the_global_seeds() -> None:
    runs = []
    for _ in range(3):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        runs.append(all_rows(bsr(4), 50, 3))
    assert not torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[1], runs[2])


def test_drawing_leaves_the_global_random_states_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    all_rows(bsr(4), 50, 9)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_reduced_precision_around_it_does_not_reach_it() -> None:
    expected = all_rows(bsr(40), 64, 50, generator_seed=4)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(all_rows(bsr(40), 64, 50, generator_seed=4), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dimension", {"dimension": 0}),
        ("steps", {"steps": 0}),
        ("block_size", {"block_size": -1}),
        ("block_size", {"block_size": 0}),
        ("dtype", {"dtype": torch.bfloat16}),
        ("dtype", {"dtype": torch.float16}),
        ("coefficients", {"coefficients": torch.zeros(3)}),
        ("coefficients", {"coefficients": torch.ones(2, 2)}),
        ("coefficients", {"coefficients": torch.tensor([1.0, float("nan")])}),
    ],
)
def test_bad_arguments_are_refused(name: str, options: dict) -> None:
    with pytest.raises(ValueError, match=name):
        CorrelatedNoise(**{"coefficients": bsr(3), "dimension": 4, "steps": 5} | options)
