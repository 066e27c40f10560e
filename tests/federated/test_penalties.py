"""Closed-form gradients of the penalties against autograd."""

import pytest
import torch
from torch import Tensor

from lit_methods.federated.functional import SpectralPlan, spectral_divergence
from lit_methods.federated.penalties import Penalty, ProximalPenalty, SpectralPenalty

K, D = 3, 11
SEGMENTS = [slice(0, 4), slice(6, 11)]
PLAN = SpectralPlan.make(((9,),), ratio=0.6)


def _rows(seed: int) -> Tensor:
    return torch.randn(K, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _penalty(kind: str) -> Penalty:
    if kind == "proximal":
        return ProximalPenalty(_rows(1), 0.7)
    return SpectralPenalty(_rows(1), 0.7, PLAN, SEGMENTS, kind == "student first", scale_by_norm=kind == "scaled")


def _term(kind: str, weights: Tensor, k: int) -> Tensor:
    teacher = _rows(1)[k]
    if kind == "proximal":
        return 0.7 / 2 * (weights - teacher).square().sum()
    student, teacher = (torch.cat([row[s] for s in SEGMENTS]) for row in (weights, teacher))
    factor = 0.7 * (teacher.square().sum() if kind == "scaled" else 1)
    return factor * spectral_divergence([student], [teacher], 0.6, student_first=kind == "student first")


@pytest.mark.parametrize("kind", ["proximal", "student first", "teacher first", "scaled"])
def test_gradient_is_that_of_the_term(kind: str) -> None:
    weights, penalty = _rows(2), _penalty(kind)
    for rows in (slice(0, 3), slice(1, 3)):
        gradient = torch.ones(len(weights[rows]), D, dtype=torch.float64)
        penalty.add_gradient_(gradient, weights[rows], rows, 0)
        for place, k in enumerate(range(K)[rows]):
            leaf = weights[k].clone().requires_grad_()
            (expected,) = torch.autograd.grad(_term(kind, leaf, k), leaf)
            torch.testing.assert_close(gradient[place], 1 + expected, rtol=1e-10, atol=1e-13)
    order = torch.tensor([2, 0])
    gradient = torch.zeros(2, D, dtype=torch.float64)
    penalty.take(order).add_gradient_(gradient, weights[order], slice(0, 2), 0)
    leaf = weights[0].clone().requires_grad_()
    torch.testing.assert_close(gradient[1], torch.autograd.grad(_term(kind, leaf, 0), leaf)[0], rtol=1e-10, atol=1e-13)


def test_values_leave_the_factor_out() -> None:
    weights = _rows(2)
    spectral, proximal = _penalty("student first"), _penalty("proximal")
    expected = [_term("student first", weights[k], k) / 0.7 for k in range(K)]
    torch.testing.assert_close(spectral.value(weights), torch.stack(expected))
    expected = [_term("proximal", weights[k], k) / 0.7 for k in range(K)]
    torch.testing.assert_close(proximal.value(weights), torch.stack(expected))


def test_norm_is_that_of_the_gradient() -> None:
    weights, penalty, gradient = _rows(2), _penalty("scaled"), torch.zeros(K, D, dtype=torch.float64)
    penalty.add_gradient_(gradient, weights, slice(0, K), 0)
    torch.testing.assert_close(penalty.measure(weights), (penalty.value(weights), gradient.norm(dim=1)))


def test_every_third_step_is_three_times_as_strong() -> None:
    weights, often = _rows(2), _penalty("student first")
    seldom = SpectralPenalty(_rows(1), 0.7, PLAN, SEGMENTS, True, every_k_steps=3)
    once, total = torch.zeros(K, D, dtype=torch.float64), torch.zeros(K, D, dtype=torch.float64)
    often.add_gradient_(once, weights, slice(0, K), 0)
    for step in range(6):
        seldom.add_gradient_(total, weights, slice(0, K), step)
    torch.testing.assert_close(total, 6 * once)


def test_teacher_is_transformed_once() -> None:
    teacher = _rows(1)
    penalty = SpectralPenalty(teacher, 0.7, PLAN, SEGMENTS, True)
    before = penalty.value(_rows(2))
    teacher.add_(1.0)
    assert torch.equal(penalty.value(_rows(2)), before)
