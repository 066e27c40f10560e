"""Gradients, codes and packing for all rows and numbers that Hypothesis draws."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_methods.softmax_approximation import functional as F
from tests.properties import SEED, normal
from tests.softmax_approximation.references import paper_row

ROWS, KEYS = st.integers(1, 5), st.integers(2, 30)


@given(SEED, ROWS, KEYS, st.floats(0.0, 0.5))
def test_softmax_gradients_sum_to_zero_and_errors_keep_their_bound(
    seed: int, rows: int, keys: int, size: float
) -> None:
    weights, grad = normal(seed, rows, keys).softmax(-1), normal(seed + 1, rows, keys)
    exact = F.softmax_backward(weights, grad)
    torch.testing.assert_close(exact.sum(-1), torch.zeros(rows, dtype=torch.float64), rtol=0, atol=1e-12)
    other = (1 - size) * weights + size * normal(seed + 2, rows, keys).softmax(-1)
    away = (F.softmax_backward(other, grad) - exact).abs().sum(-1)
    assert bool((away <= F.error_bound(weights, other, grad) + 1e-12).all())
    mass = F.kept_mass(weights, other)
    assert bool((mass >= 1 - size - 1e-12).all() and (mass <= 1 + 1e-12).all())


@given(SEED, ROWS, KEYS, st.floats(0.1, 10.0))
def test_errors_and_angles_know_no_scale(seed: int, rows: int, keys: int, scale: float) -> None:
    one, two = normal(seed, rows, keys), normal(seed + 1, rows, keys)
    error, cosine = F.relative_error(one, two), F.cosine_similarity(one, two)
    torch.testing.assert_close(F.relative_error(scale * one, scale * two), error)
    torch.testing.assert_close(F.cosine_similarity(scale * one, two), cosine)
    assert float(error**2 * two.norm() ** 2) == pytest.approx(
        float(one.norm() ** 2 + two.norm() ** 2 - 2 * cosine * one.norm() * two.norm())
    )
    assert float(F.relative_error(one, one)) == 0
    assert float(F.cosine_similarity(one, -scale * one)) == pytest.approx(-1.0)


@given(SEED, ROWS, KEYS, st.sampled_from([1, 2, 4, 8]))
def test_packed_codes_come_back(seed: int, rows: int, keys: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, keys), generator=generator, dtype=torch.uint8)
    packed = F.pack_bits(codes, bits)
    assert packed.shape == (rows, F.packed_width(keys, bits))
    assert F.packed_width(keys, bits) == math.ceil(keys * bits / 8)
    assert torch.equal(F.unpack_bits(packed, bits, keys), codes)


@given(SEED, KEYS, st.sampled_from([2, 4, 8]), st.floats(0.1, 4.0), st.integers(0, 3))
def test_logarithmic_codes_are_the_nearest_levels(seed: int, keys: int, bits: int, spread: float, masked: int) -> None:
    scores, depth, top = spread * normal(seed, keys), math.log(keys) + 4, 2**bits - 1
    scores[1 : 1 + masked] = -torch.inf
    codes, span = F.log_codes(scores, bits)
    distances = [float(scores.max() - score) for score in scores]
    reach = max(1e-6, *(d for d in distances if d <= depth))
    assert float(span) == pytest.approx(reach, rel=1e-6)
    for code, distance in zip(codes.tolist(), distances, strict=True):
        if distance > depth:
            assert code in (0, 1)
            continue
        level = (math.sqrt(1 + 8 * distance / reach) - 1) / 2
        assert abs(code - (top - (top - 1) * level)) <= 0.5 + 1e-6
    weights = F.log_weights(codes, span, bits, torch.float64)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert bool((weights[scores.isinf()] == 0).all())
    order = scores.argsort()
    assert bool((weights[order].diff() >= 0).all())


@given(SEED, KEYS, st.sampled_from([2, 4, 8]), st.floats(0.1, 4.0))
def test_stochastic_codes_are_neighbours_of_their_weight(seed: int, keys: int, bits: int, spread: float) -> None:
    weights, top = (spread * normal(seed, keys)).softmax(-1), 2**bits - 1
    weights[0] = 0.0
    codes, scale = F.stochastic_log_codes(weights, bits, torch.Generator().manual_seed(seed))
    peak, span = scale.tolist()
    assert peak == pytest.approx(float(weights.max()), rel=1e-6)
    levels = [0.0] + [peak * math.exp(-span * (top - code) / (top - 1)) for code in range(1, top + 1)]
    found = F.stochastic_log_weights(codes, scale, bits, torch.float64)
    for weight, code, decoded in zip(weights.tolist(), codes.tolist(), found.tolist(), strict=True):
        assert decoded == pytest.approx(levels[code], rel=1e-5)
        below, above = levels[max(0, code - 1)], levels[min(top, code + 1)]
        assert below * (1 - 1e-5) <= weight <= above * (1 + 1e-5)
    assert codes[0] == 0


@given(st.integers(1, 2**20))
def test_an_index_fits_the_smallest_type(keys: int) -> None:
    largest = torch.iinfo(F.index_dtype(keys)).max
    assert keys - 1 <= largest
    smaller = [size for size in (255, 2**15 - 1, 2**31 - 1) if size < largest]
    assert all(keys - 1 > size for size in smaller)


@given(SEED, KEYS, st.integers(1, 4), st.sampled_from(["paper", "geometric", "uniform", "zero"]), st.integers(0, 6))
def test_the_rebuilt_row_is_the_papers(seed: int, keys: int, kept: int, tail: Any, masked: int) -> None:
    scores = normal(seed, 1, keys)
    scores[0, 1 : 1 + masked] = -torch.inf
    weights = scores.softmax(-1)
    valid = F.valid_counts(weights)
    assert int(valid) == sum(weight > 0 for weight in weights[0].tolist())
    ordered, ranks = F.descending_ranks(weights)
    assert torch.equal(ordered.gather(-1, ranks.long()), weights)
    assert bool((ordered.diff() <= 0).all())
    if int(valid) <= 2 * kept:
        return
    high, low = ordered[:, :kept], ordered[:, int(valid) - kept : int(valid)]
    steps = int(valid) - 2 * kept + 1
    slope = F.tail_slope(high[:, -1:], ordered[:, kept, None], low[:, :1], float(steps), tail=tail)
    row = F.rebuild_sorted(high, low, slope, valid, keys, tail=tail).gather(-1, ranks.long())
    assert row[0].tolist() == pytest.approx(paper_row(weights[0].tolist(), kept, tail=tail), rel=1e-9, abs=1e-12)
