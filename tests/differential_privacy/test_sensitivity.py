"""Sensitivity and expected error against exhaustive search, dense algebra and the recorded tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lit_methods.differential_privacy import functional as F
from tests.differential_privacy import references
from tests.differential_privacy.references import lower_toeplitz

SCHEDULES = [(1, 4), (2, 4), (4, 4), (4, 1), (3, 3), (2, 7), (4, 5), (9, 4), (2, 15), (3, 20)]
TABLE = references.recorded("table")
CURVES = [row for row in references.recorded("curves") if row["steps"] <= 2000 or row["participations"] > 1]


def setting(row: dict) -> str:
    return "-".join(f"{row[name]:g}" for name in list(row)[:6])


def decreasing(seed: int, bandwidth: int) -> np.ndarray:
    steps_down = np.random.default_rng(seed).exponential(size=bandwidth)
    return np.cumsum(steps_down)[::-1].copy()


@pytest.mark.parametrize(("participations", "separation"), SCHEDULES)
@pytest.mark.parametrize("bandwidth", [1, 2, 4, 7, 12, 30])
def test_theorem_2_equals_the_search_over_all_patterns(bandwidth: int, participations: int, separation: int) -> None:
    for seed, steps in enumerate((8, 11, 12)):
        column = decreasing(seed, bandwidth)
        exhaustive = references.exhaustive_sensitivity(lower_toeplitz(column, steps), participations, separation)
        ours = F.toeplitz_sensitivity(column, steps, participations, separation)
        assert ours == pytest.approx(exhaustive, rel=1e-12)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 1.0), (0.9, 1.0), (0.9, 0.999), (0.0, 0.9999)])
@pytest.mark.parametrize("bandwidth", [1, 4, 8, 16])
def test_bsr_at_16_steps_equals_the_search(bandwidth: int, momentum: float, decay: float) -> None:
    column = F.banded_square_root_coefficients(bandwidth, momentum, decay)
    strategy = lower_toeplitz(column.numpy(), 16)
    for participations, separation in [(1, 16), (4, 4), (4, 3), (3, 1), (2, 6)]:
        exhaustive = references.exhaustive_sensitivity(strategy, participations, separation)
        assert F.toeplitz_sensitivity(column, 16, participations, separation) == pytest.approx(exhaustive, rel=1e-14)


@pytest.mark.parametrize("seed", range(6))
def test_band_within_the_separation_equals_the_dynamic_program(seed: int) -> None:
    generator = np.random.default_rng(seed)
    separation = int(generator.integers(3, 12))
    steps, participations = int(generator.integers(20, 60)), int(generator.integers(1, 9))
    column = decreasing(seed, int(generator.integers(1, separation + 1)))
    program = references.column_norm_sensitivity(lower_toeplitz(column, steps), participations, separation)
    assert F.toeplitz_sensitivity(column, steps, participations, separation) == pytest.approx(program, rel=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_any_other_column_is_bounded_from_above(seed: int) -> None:
    column = np.random.default_rng(seed).normal(size=6)
    column[0] = abs(column[0]) + 0.01
    strategy = lower_toeplitz(column, 11)
    for participations, separation in [(1, 11), (3, 3), (3, 1), (2, 6)]:
        ours = F.toeplitz_sensitivity(column, 11, participations, separation)
        signed = references.exhaustive_signed_sensitivity(strategy, participations, separation)
        unsigned = references.exhaustive_sensitivity(strategy, participations, separation)
        assert signed <= unsigned * (1 + 1e-12) <= ours * (1 + 2e-12)


def test_the_bound_is_strict_where_theorem_2_does_not_hold() -> None:
    late_peak = [1.0, 0.0, 3.0]
    naive = np.linalg.norm(lower_toeplitz(late_peak, 9)[:, [0, 1]].sum(axis=1))
    assert F.toeplitz_sensitivity(late_peak, 9, 2, 1) > naive
    assert F.toeplitz_sensitivity(late_peak, 9, 2, 1) == pytest.approx(
        F.toeplitz_sensitivity([3.0, 3.0, 3.0], 9, 2, 1), rel=1e-14
    )


@pytest.mark.parametrize("seed", range(4))
def test_no_unit_contributions_exceed_it(seed: int) -> None:
    generator = np.random.default_rng(seed)
    column = F.banded_square_root_coefficients(10, 0.8, 0.99).numpy()
    strategy, limit = lower_toeplitz(column, 14), F.toeplitz_sensitivity(column, 14, 4, 3)
    for pattern in references.participation_patterns(14, 4, 3):
        contributions = generator.normal(size=(len(pattern), 3))
        contributions /= np.linalg.norm(contributions, axis=1, keepdims=True)
        assert np.linalg.norm(strategy[:, pattern] @ contributions) <= limit * (1 + 1e-12)


@pytest.mark.parametrize("row", references.recorded("notebook")[:2], ids=str)
def test_sensitivity_printed_by_the_authors(row: dict) -> None:
    column = F.banded_square_root_coefficients(row["bandwidth"], 0.9, 0.9999)
    ours = F.toeplitz_sensitivity(column, 781, 11, 78)
    assert ours == pytest.approx(row["printed_sensitivity"], rel=1e-7)


def test_a_column_that_the_end_cuts_counts_with_what_is_left() -> None:
    column = F.banded_square_root_coefficients(4, 0.9, 0.9999)
    inside, norm = float(column @ column), F.toeplitz_sensitivity(column, 781, 11, 78)
    assert norm == pytest.approx(math.sqrt(10 * inside + 1.0), rel=1e-14)
    assert F.toeplitz_sensitivity(column, 784, 11, 78) == pytest.approx(math.sqrt(11 * inside), rel=1e-14)
    assert F.toeplitz_sensitivity(column, 784, 40, 78) == F.toeplitz_sensitivity(column, 784, 11, 78)


def test_it_grows_with_steps_and_participations_and_scales_with_the_column() -> None:
    column = F.banded_square_root_coefficients(16, 0.9, 1.0)
    by_step = [F.toeplitz_sensitivity(column, steps, 5, 12) for steps in range(1, 80)]
    assert by_step == sorted(by_step)
    assert by_step[0] == 1.0
    by_count = [F.toeplitz_sensitivity(column, 60, count, 12) for count in range(1, 8)]
    assert by_count == sorted(by_count)
    assert F.toeplitz_sensitivity(3.0 * column, 60, 5, 12) == pytest.approx(3 * by_count[4], rel=1e-14)


@pytest.mark.parametrize("row", TABLE, ids=setting)
def test_reference_table(row: dict) -> None:
    optimizer = {"momentum": row["momentum"], "weight_decay_factor": row["weight_decay_factor"]}
    schedule = (row["steps"], row["participations"], row["separation"])
    column = F.banded_square_root_coefficients(row["bandwidth"], **optimizer)
    assert F.toeplitz_sensitivity(column, *schedule) == pytest.approx(row["sensitivity"], rel=1e-9)
    workload = F.sgd_workload(row["steps"], **optimizer)
    assert F.decoder_norm(column, workload) == pytest.approx(row["decoder"], rel=1e-9)
    error = F.expected_error(column, *schedule, **optimizer)
    assert error == pytest.approx(row["error"], rel=1e-9)
    assert F.expected_error([1.0], *schedule, **optimizer) == pytest.approx(row["identity_error"], rel=1e-9)
    root = F.banded_square_root_coefficients(row["steps"], **optimizer)
    assert F.expected_error(root, *schedule, **optimizer) == pytest.approx(row["square_root_error"], rel=1e-9)
    assert error > row["lower_bound"]


@pytest.mark.parametrize("row", [row for row in TABLE if row["steps"] <= 64], ids=setting)
def test_reference_table_is_what_dense_algebra_gives(row: dict) -> None:
    workload = references.simulated_workload(row["steps"], row["momentum"], row["weight_decay_factor"])
    root = np.real(references.linalg.sqrtm(workload))[:, 0]
    strategy = lower_toeplitz(root[: row["bandwidth"]], row["steps"])
    assert references.dense_decoder_norm(strategy, workload) == pytest.approx(row["decoder"], rel=1e-9)
    assert references.nuclear_lower_bound(workload, row["participations"]) == pytest.approx(
        row["lower_bound"], rel=1e-9
    )
    if row["bandwidth"] <= row["separation"]:
        program = references.column_norm_sensitivity(strategy, row["participations"], row["separation"])
        assert program == pytest.approx(row["sensitivity"], rel=1e-9)


@pytest.mark.parametrize("row", CURVES, ids=setting)
def test_figure_3_curves(row: dict) -> None:
    optimizer = {"momentum": row["momentum"], "weight_decay_factor": row["weight_decay_factor"]}
    schedule = (row["steps"], row["participations"], row["separation"])
    for bandwidth, error in [("separation", "error_at_separation"), ("best_bandwidth", "best_error")]:
        column = F.banded_square_root_coefficients(row[bandwidth], **optimizer)
        assert F.expected_error(column, *schedule, **optimizer) == pytest.approx(row[error], rel=1e-9)


@pytest.mark.parametrize("row", [row for row in CURVES if row["steps"] == 200], ids=setting)
def test_no_bandwidth_is_much_better_than_the_recorded_best(row: dict) -> None:
    optimizer = {"momentum": row["momentum"], "weight_decay_factor": row["weight_decay_factor"]}
    schedule = (row["steps"], row["participations"], row["separation"])
    root = F.banded_square_root_coefficients(row["separation"], **optimizer)
    errors = [F.expected_error(root[: 1 + last], *schedule, **optimizer) for last in range(row["separation"])]
    assert min(errors) == pytest.approx(row["best_error"], rel=1e-3)
    assert (np.argmin(errors) + 1 == row["separation"]) == (row["participations"] > 1)


@pytest.mark.parametrize("bandwidth", [1, 5, 30, 60])
def test_decoder_norm_of_any_workload_equals_dense_algebra(bandwidth: int) -> None:
    generator = np.random.default_rng(bandwidth)
    column, workload = decreasing(bandwidth, bandwidth) + 1.0, 1.0 + generator.normal(size=40) ** 2
    dense = references.dense_decoder_norm(lower_toeplitz(column, 40), lower_toeplitz(workload, 40))
    assert F.decoder_norm(torch.from_numpy(column), workload) == pytest.approx(dense, rel=1e-11)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("bad", [0, -2])
def test_counts_below_one_are_refused(position: int, bad: int) -> None:
    schedule = [8, 2, 4]
    schedule[position] = bad
    name = ("steps", "participations", "separation")[position]
    for function in (F.toeplitz_sensitivity, F.expected_error):
        with pytest.raises(ValueError, match=f"{name}.*{bad}"):
            function([1.0, 0.5], *schedule)


@pytest.mark.parametrize("column", [[], [0.0, 1.0], [math.nan], [1.0, math.inf], [[1.0]]])
def test_columns_that_make_no_strategy_are_refused(column: list) -> None:
    with pytest.raises(ValueError, match="coefficients"):
        F.toeplitz_sensitivity(column, 8, 2, 4)
