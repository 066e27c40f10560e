"""Formulas against loops and autograd."""

import math

import pytest
import torch

from lit_methods.data_manipulation.functional import (
    effective_number_weights,
    effective_sample_size,
    inverse_frequency,
    lazy_adam_step,
    linear_weights,
    softmax_weight_gradient,
    softmax_weights,
)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_softmax_weights_and_their_gradient(temperature: float) -> None:
    phi = torch.randn(7, dtype=torch.float64, requires_grad=True)
    gains = torch.randn(7, dtype=torch.float64)
    powers = [math.exp(p / temperature) for p in phi.tolist()]
    expected = torch.tensor([7 * power / sum(powers) for power in powers], dtype=torch.float64)
    weights = softmax_weights(phi, temperature)
    torch.testing.assert_close(weights.detach(), expected)
    (wanted,) = torch.autograd.grad(-(weights / 7 * gains).sum(), phi)
    found = softmax_weight_gradient(weights.detach(), gains, temperature)
    torch.testing.assert_close(found, wanted)
    assert abs(float(found.sum())) < 1e-15
    shifted = softmax_weights(phi.detach() + 3.7, temperature)
    torch.testing.assert_close(shifted, weights.detach())
    order = torch.randperm(7)
    torch.testing.assert_close(
        softmax_weight_gradient(weights.detach()[order], gains[order], temperature), wanted[order]
    )


@pytest.mark.parametrize("size", [1, 3, 7, 49, 50, 64, 1000])
def test_equal_logits_give_exactly_one(size: int) -> None:
    assert torch.equal(softmax_weights(torch.full((size,), 2.3)), torch.ones(size))


def test_extreme_logits_stay_finite() -> None:
    assert softmax_weights(torch.tensor([1e4, 0.0, -1e4])).tolist() == [3.0, 0.0, 0.0]


def test_linear_weights() -> None:
    assert linear_weights(torch.tensor([2.0, -1.0, 6.0])).tolist() == [0.75, 0.0, 2.25]
    assert linear_weights(torch.tensor([-2.0, 0.0])).tolist() == [0.0, 0.0]


def test_effective_sample_size() -> None:
    assert float(effective_sample_size(torch.tensor([1.0, 1.0, 1.0, 1.0]))) == 1.0
    assert float(effective_sample_size(torch.tensor([5.0, 0.0, 0.0, 0.0]))) == 0.25
    assert float(effective_sample_size(torch.zeros(4))) == 0.0


def test_class_weights() -> None:
    counts = torch.tensor([4, 0, 100])
    assert inverse_frequency(counts).tolist() == pytest.approx([0.25, 0.0, 0.01])
    assert inverse_frequency(counts, 0.5).tolist() == pytest.approx([0.5, 0.0, 0.1])
    expected = [sum(0.9**k for k in range(n)) ** -1 if n else 0.0 for n in (4, 0, 100)]
    assert effective_number_weights(counts, 0.9).tolist() == pytest.approx(expected)


def test_lazy_adam_is_adam_per_row() -> None:
    rows = torch.zeros(3, dtype=torch.float64)
    first, second, visits = *torch.zeros(2, 3).double().unbind(), torch.zeros(3)
    twins = [torch.nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(3)]
    adams = [torch.optim.Adam([p], lr=0.1, eps=1e-12) for p in twins]
    for step in range(6):
        chosen = torch.tensor([i for i in range(3) if step % (i + 1) == 0])
        gradient = torch.randn(len(chosen), dtype=torch.float64) * 1e-3
        visits[chosen] += 1
        change, first[chosen], second[chosen] = lazy_adam_step(
            gradient, first[chosen], second[chosen], visits[chosen], lr=0.1, betas=(0.9, 0.999)
        )
        rows[chosen] += change
        for i, g in zip(chosen.tolist(), gradient, strict=True):
            twins[i].grad = g.clone()
            adams[i].step()
    torch.testing.assert_close(rows, torch.stack([p.detach() for p in twins]), rtol=1e-4, atol=0)
