"""Logarithmic codes: against a search over all levels, from scores and from weights, and unbiased draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lit_methods.softmax_approximation import Logarithmic, StochasticLogarithmic
from tests.softmax_approximation.references import random_weights, round_trip


def nearest_level(weights: list[float], bits: int) -> list[float]:
    """One row, each weight at the level whose spacing variable is nearest, found by trying all."""
    top = 2**bits - 1
    peak = max(weights)
    drops = [math.log(peak / w) if w > 0 else math.inf for w in weights]
    depth = math.log(len(weights)) + 4
    span = max([drop for drop in drops if drop < depth] + [1e-6])
    steps = [(top - code) / (top - 1) for code in range(top + 1)]
    row = []
    for drop in drops:
        t = math.sqrt(0.25 + 2 * drop / span) - 0.5
        best = min(range(top + 1), key=lambda code: abs(steps[code] - t)) if t < steps[0] else 0
        row.append(math.exp(-span * steps[best] * (1 + steps[best]) / 2) if best else 0.0)
    return [value / sum(row) for value in row]


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("keys", [2, 9, 100])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_equals_the_search_over_levels(bits: int, keys: int, spread: float) -> None:
    weights = random_weights(6, keys, spread=spread)
    weights[:, 0] = 0.0
    weights = weights / weights.sum(-1, keepdim=True)
    expected = torch.tensor([nearest_level(row, bits) for row in weights.tolist()], dtype=torch.float64)
    torch.testing.assert_close(round_trip(Logarithmic(bits), weights), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("bits", [4, 8])
def test_scores_and_weights_give_the_same(bits: int) -> None:
    scores = 2 * torch.randn(20, 64)
    scores[:, 50:] = -torch.inf
    weights = torch.softmax(scores, -1)
    codec = Logarithmic(bits)
    rows = [
        codec.decode(stored, size=weights.shape, dtype=torch.float32)
        for stored in (codec.encode(weights), codec.encode(weights, scores=scores))
    ]
    assert ((rows[0] - rows[1]).abs() > 1e-6).float().mean() < 0.01


def test_scores_masked_by_the_smallest_float_are_zero_and_a_row_of_them_even() -> None:
    scores = torch.randn(2, 10)
    scores[0, 3:] = torch.finfo(torch.float32).min
    scores[1] = torch.finfo(torch.float32).min
    weights = torch.softmax(scores, -1)
    stored = Logarithmic(4).encode(weights, scores=scores)
    decoded = Logarithmic(4).decode(stored, size=weights.shape, dtype=torch.float32)
    assert (decoded[0, 3:] == 0).all()
    torch.testing.assert_close(decoded[1], torch.full((10,), 0.1))


def test_a_row_without_a_finite_score_is_nan_and_one_of_zeros_zero() -> None:
    scores = torch.full((1, 6), -torch.inf)
    weights = torch.softmax(scores, -1)
    codec = Logarithmic(4)
    decoded = codec.decode(codec.encode(weights, scores=scores), size=weights.shape, dtype=torch.float32)
    assert decoded.isnan().all()
    zeros = torch.cat([torch.zeros(1, 6), torch.full((1, 6), 1 / 6)])
    torch.testing.assert_close(round_trip(codec, zeros), zeros)


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0, 4.0])
def test_errors_stay_below_those_of_even_steps(spread: float) -> None:
    weights = random_weights(200, 256, spread=spread)
    even = weights.log()
    even = even - even.amax(-1, keepdim=True)
    step = -even.amin(-1, keepdim=True) / 14
    even = torch.softmax((even / step).round() * step, -1)
    ours = round_trip(Logarithmic(4), weights)
    assert (ours - weights).norm() < 1.1 * (even - weights).norm()


def mean_errors(draw: Tensor, target: Tensor) -> tuple[float, float]:
    """Error of the mean of 4 and of 1,024 draws over the mean error of one."""
    single = (draw - target).norm(dim=(1, 2)).square().mean().sqrt()
    few = (draw[:1024].view(256, 4, *target.shape).mean(1) - target).norm(dim=(1, 2)).square().mean().sqrt()
    many = (draw.mean(0) - target).norm()
    return (few / single).item(), (many / single).item()


def unbiased(draws: Tensor, target: Tensor) -> bool:
    """Whether the error of the mean shrinks as one over the root of the number of draws."""
    few, many = mean_errors(draws, target)
    return abs(few - 0.5) < 0.05 and many < 2.0 / math.sqrt(len(draws))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_stochastic_codes_are_unbiased_and_biased_variants_are_rejected(bits: int) -> None:
    weights = random_weights(6, 40, spread=1.5)
    codec = StochasticLogarithmic(bits)
    draws = torch.stack([round_trip(codec, weights) for _ in range(1024)])
    assert unbiased(draws, weights)
    assert not unbiased(draws + 0.5 * (draws - weights).abs(), weights)
    if bits == 2:
        assert not unbiased(draws / draws.sum(-1, keepdim=True), weights)


def test_stochastic_levels_are_zero_and_a_geometric_progression_up_to_the_maximum() -> None:
    weights = random_weights(4, 300, spread=3.0)
    decoded = round_trip(StochasticLogarithmic(2), weights)
    for before, after in zip(weights, decoded, strict=True):
        levels = after.unique()
        assert len(levels) <= 4
        assert levels[0] == 0
        torch.testing.assert_close(levels[-1], before.max(), rtol=1e-6, atol=0)
        torch.testing.assert_close(levels[-1] / levels[-2], levels[-2] / levels[-3], rtol=1e-6, atol=0)


def test_draws_come_from_the_codec_alone_and_go_on_after_loading() -> None:
    weights = random_weights(5, 50, dtype=torch.float32)
    codec = StochasticLogarithmic(2, seed=5)
    before = torch.get_rng_state()
    first = round_trip(codec, weights)
    state = codec.state_dict()
    second = round_trip(codec, weights)
    assert torch.get_rng_state().equal(before)
    assert not first.equal(second)
    other = StochasticLogarithmic(2, seed=99)
    other.load_state_dict(state)
    assert round_trip(other, weights).equal(second)
    assert round_trip(StochasticLogarithmic(2, seed=5), weights).equal(first)
    assert not round_trip(StochasticLogarithmic(2, seed=6), weights).equal(first)


def test_a_generator_of_the_caller_is_used() -> None:
    weights = random_weights(5, 50, dtype=torch.float32)
    codec = StochasticLogarithmic(2)
    packs = [codec.encode(weights, generator=torch.Generator().manual_seed(1))[0] for _ in range(2)]
    assert packs[0].equal(packs[1])


@pytest.mark.parametrize("kind", [Logarithmic, StochasticLogarithmic])
def test_odd_bit_counts_are_refused(kind: type[Logarithmic]) -> None:
    with pytest.raises(ValueError, match="bits must be 2, 4 or 8"):
        kind(3)
