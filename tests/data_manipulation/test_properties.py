"""Weights, gradients and updates for all shapes and numbers that Hypothesis draws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_methods.data_manipulation import functional as F
from tests.properties import SEED, SIZE, normal

COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=6)
BETAS = st.tuples(st.floats(0.0, 0.95), st.floats(0.0, 0.999))


@given(SEED, SIZE, st.floats(0.1, 10.0))
def test_weights_of_a_batch_have_mean_one_and_their_gradient_sums_to_zero(
    seed: int, size: int, temperature: float
) -> None:
    logits, gains = normal(seed, size), normal(seed + 1, size)
    weights = F.softmax_weights(logits, temperature)
    assert float(weights.mean()) == pytest.approx(1.0)
    torch.testing.assert_close(F.softmax_weights(logits + 7.0, temperature), weights)
    gradient = F.softmax_weight_gradient(weights, gains, temperature)
    assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-9)
    linear = F.linear_weights(logits)
    assert float(linear.mean()) == pytest.approx(1.0 if bool((logits > 0).any()) else 0.0)
    assert 1 / size - 1e-9 <= float(F.effective_sample_size(weights)) <= 1 + 1e-9


@given(COUNTS, st.floats(0.0, 2.0), st.floats(0.01, 0.99))
def test_class_weights_undo_the_number_of_examples(counts: list[int], power: float, beta: float) -> None:
    inverse = F.inverse_frequency(torch.tensor(counts), power)
    effective = F.effective_number_weights(torch.tensor(counts), beta)
    for count, one, two in zip(counts, inverse.tolist(), effective.tolist(), strict=True):
        assert one * count**power == pytest.approx(float(count > 0), rel=1e-5) or count == 0
        assert two * sum(beta**i for i in range(count)) == pytest.approx(float(count > 0), rel=1e-5)
        if count == 0:
            assert one == two == 0


@given(SEED, st.integers(1, 6), st.integers(1, 4), st.integers(2, 5), st.booleans())
def test_last_layer_gains_are_products_of_whole_gradients(
    seed: int, batch: int, size: int, classes: int, bias: bool
) -> None:
    features, residuals = normal(seed, batch, size), normal(seed + 1, batch, classes)
    slope, bias_slope = normal(seed + 2, classes, size), normal(seed + 3, classes)
    found = F.last_layer_gains(features, residuals, slope, bias_slope if bias else None)
    for i in range(batch):
        weight_gradient = torch.outer(residuals[i], features[i])
        expected = (weight_gradient * slope).sum() + (residuals[i] @ bias_slope if bias else 0.0)
        torch.testing.assert_close(found[i], expected)


@given(SEED, st.integers(1, 4), st.integers(1, 12), BETAS, st.floats(1e-3, 1.0))
def test_each_row_has_an_adam_of_its_own(
    seed: int, rows: int, steps: int, betas: tuple[float, float], lr: float
) -> None:
    gradients = normal(seed, steps, rows)
    visited = normal(seed + 1, steps, rows) > 0
    table, moments = torch.zeros(rows, dtype=torch.float64), torch.zeros(2, rows, dtype=torch.float64)
    visits = torch.zeros(rows, dtype=torch.int64)
    alone = [torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(rows)]
    adams = [torch.optim.Adam([row], lr=lr, betas=betas, eps=1e-12) for row in alone]
    for gradient, seen in zip(gradients, visited, strict=True):
        visits[seen] += 1
        change, first, second = F.lazy_adam_step(
            gradient[seen], moments[0, seen], moments[1, seen], visits[seen], lr=lr, betas=betas
        )
        table[seen] += change
        moments[0, seen], moments[1, seen] = first, second
        for i in seen.nonzero().flatten().tolist():
            alone[i].grad = gradient[i : i + 1].clone()
            adams[i].step()
    torch.testing.assert_close(table, torch.cat(alone).detach(), rtol=1e-6, atol=1e-9)


@given(SEED, st.integers(1, 5), st.integers(1, 50), BETAS)
def test_adams_jacobian_is_the_derivative_of_its_step(
    seed: int, size: int, step: int, betas: tuple[float, float]
) -> None:
    gradient = normal(seed, size).requires_grad_()
    first, second = normal(seed + 1, size), normal(seed + 2, size).square()
    moment = betas[0] * first + (1 - betas[0]) * gradient
    root = ((betas[1] * second + (1 - betas[1]) * gradient.square()) / (1 - betas[1] ** step)).sqrt()
    change = -0.3 * moment / (1 - betas[0] ** step) / (root + 1e-8)
    (expected,) = torch.autograd.grad(-change.sum(), gradient)
    found = F.adam_jacobian(gradient.detach(), first, second, step, lr=0.3, betas=betas, eps=1e-8)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
