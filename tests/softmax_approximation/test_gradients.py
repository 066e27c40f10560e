"""What an approximation does to gradients: exact at full keep, within the bound, blind to shifts, unbiased."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lit_methods.softmax_approximation import (
    CODECS,
    Codec,
    Logarithmic,
    Merged,
    RankedTail,
    Recompute,
    StochasticLogarithmic,
    TopK,
    as_codec,
    softmax_attention,
    softmax_value_product,
)
from lit_methods.softmax_approximation.functional import (
    cosine_similarity,
    error_bound,
    kept_mass,
    relative_error,
    softmax_backward,
)
from tests.softmax_approximation.references import eager, random_heads, random_weights, round_trip

FULL: list[Codec] = [
    Merged(),
    Recompute(),
    RankedTail(5),
    RankedTail(3, tail="zero"),
    TopK(1.0, dtype=torch.float64),
    TopK(1.0, tail="zero", dtype=torch.float64),
    TopK(1.0, tail=Logarithmic(4), dtype=torch.float64),
]
CONSERVING: list[Codec] = [
    *(as_codec(name) for name in ("bf16", "log8", "log4", "paper", "topk", "topk-log4")),
    RankedTail(2, tail="geometric"),
    RankedTail(2, tail="uniform"),
    RankedTail(2, n_steps="all"),
]


@pytest.mark.parametrize("exact_row_constant", [True, False])
@pytest.mark.parametrize("codec", FULL, ids=repr)
def test_gradcheck_where_everything_is_kept(codec: Codec, exact_row_constant: bool) -> None:
    query, key, value = random_heads(batch=1, heads=2, queries=3, keys=6, key_heads=1, dtype=torch.float64)
    bias = torch.randn(2, 1, 6, dtype=torch.float64, requires_grad=True)
    hidden = torch.tensor([0, 0, 0, -math.inf, 0, 0], dtype=torch.float64)
    for mask in (bias, bias + hidden):

        def run(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor = mask) -> tuple[Tensor, ...]:
            torch.manual_seed(3)
            output, weights = softmax_attention(
                query,
                key,
                value,
                codec=codec,
                mask=bias if mask is bias else bias + hidden,
                dropout_p=0.25,
                need_weights=True,
                exact_row_constant=exact_row_constant,
                chunk_elements=13,
            )
            assert weights is not None
            return output, weights

        assert torch.autograd.gradcheck(run, (query, key, value, bias), fast_mode=True)


@pytest.mark.parametrize("name", ["merged", "bf16", "log8", "log4", "paper", "topk", "topk-log4"])
def test_gradients_see_the_decoded_weights_and_nothing_else(name: str) -> None:
    codec = as_codec(name)
    scores = torch.randn(2, 3, 20, 40, dtype=torch.float64, requires_grad=True)
    value = torch.randn(2, 3, 40, 8, dtype=torch.float64, requires_grad=True)
    output, _ = softmax_value_product(scores, value, codec=codec)
    grad = torch.randn_like(output)
    found = torch.autograd.grad(output, (scores, value), grad)
    weights = torch.softmax(scores, -1).detach()
    stored = codec.encode(weights, scores=scores.detach())
    seen = codec.decode(stored, size=weights.shape, dtype=torch.float64)
    constant = (weights * (grad @ value.mT)).sum(-1, keepdim=True)
    torch.testing.assert_close(found[0], softmax_backward(seen, grad @ value.mT, constant))
    torch.testing.assert_close(found[1], seen.mT @ grad)


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("codec", CONSERVING, ids=repr)
def test_the_error_of_every_row_is_within_the_bound(codec: Codec, spread: float) -> None:
    weights = random_weights(50, 120, spread=spread)
    grad = torch.randn(50, 120, dtype=torch.float64) + 5.0
    seen = round_trip(codec, weights)
    error = (softmax_backward(seen, grad) - softmax_backward(weights, grad)).abs().sum(-1)
    misplaced = 1 - kept_mass(weights, seen)
    spread_of_grad = grad.max(-1).values - grad.min(-1).values
    assert (error <= 3 * misplaced * spread_of_grad + 1e-9).all()
    assert (error <= error_bound(weights, seen, grad) + 1e-9).all()
    torch.testing.assert_close(error_bound(weights, seen, grad), 3 * misplaced * spread_of_grad, rtol=1e-5, atol=1e-6)


def test_the_bound_fails_where_mass_is_lost() -> None:
    weights = random_weights(50, 120)
    grad = torch.randn(50, 120, dtype=torch.float64) + 50.0
    seen = round_trip(TopK(0.1, tail="zero", dtype=torch.float64), weights)
    error = (softmax_backward(seen, grad) - softmax_backward(weights, grad)).abs().sum(-1)
    assert (error > 3 * (1 - kept_mass(weights, seen)) * (grad.amax(-1) - grad.amin(-1))).any()


def query_gradient(codec: Codec, shift: float, *, exact_row_constant: bool) -> Tensor:
    query, key, value = random_heads(queries=30, keys=60, dtype=torch.float64)
    output, _ = softmax_attention(
        query, key, value + shift, codec=codec, exact_row_constant=exact_row_constant, dropout_p=0.0
    )
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (grad,) = torch.autograd.grad(output, query, weight)
    return grad


@pytest.mark.parametrize("codec", [as_codec(name) for name in CODECS] + [TopK(0.1, tail="zero")], ids=repr)
def test_a_constant_added_to_the_values_moves_no_gradient(codec: Codec) -> None:
    if isinstance(codec, StochasticLogarithmic):
        first, second = StochasticLogarithmic(2), StochasticLogarithmic(2)
    else:
        first, second = codec, codec
    before = query_gradient(first, 0.0, exact_row_constant=True)
    after = query_gradient(second, 10.0, exact_row_constant=True)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-11)
    if codec.conserves_mass:
        before, after = (query_gradient(codec, shift, exact_row_constant=False) for shift in (0.0, 10.0))
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


def test_the_shift_is_seen_by_a_codec_that_loses_mass() -> None:
    before, after = (query_gradient(TopK(0.1, tail="zero"), c, exact_row_constant=False) for c in (0.0, 10.0))
    assert relative_error(after, before) > 1.0


def test_kept_weights_get_exact_gradients_by_the_exact_row_constant() -> None:
    scores = torch.randn(1, 1, 20, 50, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, 1, 50, 8, dtype=torch.float64)
    grad = torch.randn(1, 1, 20, 8, dtype=torch.float64)
    exact, approximate = (
        torch.autograd.grad(softmax_value_product(scores, value, codec=codec)[0], scores, grad)[0]
        for codec in (Merged(), TopK(0.2, dtype=torch.float64))
    )
    largest = scores.topk(10).indices
    torch.testing.assert_close(approximate.gather(-1, largest), exact.gather(-1, largest))
    assert relative_error(approximate, exact) > 0.05


def test_stochastic_gradients_are_unbiased() -> None:
    heads = random_heads(batch=1, heads=2, queries=6, keys=40, dtype=torch.float64)
    grad = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    exact = torch.autograd.grad(eager(*heads)[0], heads, grad)
    draws = 256

    def deviations(codec: Codec) -> list[tuple[float, float]]:
        samples = [torch.autograd.grad(softmax_attention(*heads, codec=codec)[0], heads, grad) for _ in range(draws)]
        stacks = [torch.stack(sample) - truth for sample, truth in zip(zip(*samples, strict=True), exact, strict=True)]
        return [
            (stack.flatten(1).norm(dim=1).square().mean().sqrt().item(), stack.mean(0).norm().item())
            for stack in stacks
        ]

    for single, mean in deviations(StochasticLogarithmic(2)):
        assert 0.6 < mean / single * math.sqrt(draws) < 1.6
    biased = [mean / single * math.sqrt(draws) for single, mean in deviations(Logarithmic(2))]
    assert min(biased) > 10


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_errors_of_the_codecs_are_in_their_order(dropout_p: float) -> None:
    heads = random_heads(batch=1, heads=4, queries=64, keys=64)
    errors = []
    for name in ("merged", "bf16", "log8", "topk-log4", "log4", "topk"):
        torch.manual_seed(0)
        output, _ = softmax_attention(*heads, codec=name, dropout_p=dropout_p)
        torch.manual_seed(0)
        expected, _ = eager(*heads, dropout_p=dropout_p)
        found, exact = (torch.autograd.grad(o.square().sum(), heads[0])[0] for o in (output, expected))
        errors.append(relative_error(found, exact).item())
        assert cosine_similarity(found, exact) > 0.9
    assert errors == sorted(errors)
    assert errors[0] < 1e-6
    assert errors[1] < 0.003
    assert errors[2] < 0.01
    assert errors[4] < 0.15


def test_measures_against_plain_formulas() -> None:
    one, two = torch.randn(5, 6).double(), torch.randn(5, 6).double()
    assert relative_error(one, two).item() == pytest.approx(math.dist(one.flatten(), two.flatten()) / two.norm().item())
    cosine = sum(a * b for a, b in zip(one.flatten().tolist(), two.flatten().tolist(), strict=True))
    assert cosine_similarity(one, two).item() == pytest.approx(cosine / (one.norm() * two.norm()).item())
    assert relative_error(0 * one, 0 * one) == 0
    assert cosine_similarity(0 * one, 0 * one) == 1
    weights = random_weights(3, 9)
    torch.testing.assert_close(kept_mass(weights, weights), torch.ones(3).double())
    grad = torch.randn(3, 9).double()
    for row, (y, g) in enumerate(zip(weights, grad, strict=True)):
        jacobian = torch.diag(y) - torch.outer(y, y)
        torch.testing.assert_close(softmax_backward(weights, grad)[row], jacobian @ g)
