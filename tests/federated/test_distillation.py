"""The loss module."""

import pytest
import torch
from torch import nn

from lit_methods.backbones import MLP
from lit_methods.federated import SpectralDistillationLoss, spectral_divergence
from lit_methods.federated.distillation import select_weights
from lit_methods.federated.layout import ModelLayout


def _net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(4, [5], 3).double()


def _kernels(net: nn.Module) -> list[torch.Tensor]:
    return [p for p in net.parameters() if p.ndim >= 2]


@pytest.mark.parametrize("student_first", [True, False])
def test_value_and_gradient_are_those_of_the_divergence(student_first: bool) -> None:
    student, teacher = _net(0), _net(1)
    loss = SpectralDistillationLoss(teacher, 0.4, student_first=student_first)
    value = loss(student)
    expected = spectral_divergence(_kernels(student), _kernels(teacher), 0.4, student_first=student_first)
    torch.testing.assert_close(value, expected)
    expected = torch.autograd.grad(expected, _kernels(student))
    value.backward()
    for p, gradient in zip(_kernels(student), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)
    assert all(p.grad is None for p in teacher.parameters())


def test_training_moves_the_spectrum_to_the_teachers() -> None:
    student, loss = _net(0), SpectralDistillationLoss(_net(1))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    start = loss(student).item()
    for _ in range(200):
        optimizer.zero_grad()
        value = loss(student)
        value.backward()
        optimizer.step()
    assert value.item() < start / 20
    assert value.item() > -1e-15


def test_the_teacher_is_looked_at_once() -> None:
    student, teacher = _net(0), _net(1)
    loss = SpectralDistillationLoss(teacher)
    before = loss(student).item()
    with torch.no_grad():
        teacher[1].weight.add_(1.0)
    assert loss(student).item() == before
    assert not loss.state_dict()
    assert SpectralDistillationLoss(student)(student).item() == pytest.approx(0, abs=1e-15)
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(3.0)
    assert loss(student).item() == pytest.approx(before)


def test_selections() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2, bias=False))
    layout = ModelLayout.of(net)
    names = {
        selection: [n for n, keep in zip(layout.names, select_weights(layout, selection), strict=True) if keep]
        for selection in ("kernels", "weights", "all")
    }
    assert names["kernels"] == ["0.weight", "2.weight"]
    assert names["weights"] == ["0.weight", "1.weight", "2.weight"]
    assert names["all"] == list(layout.names)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="selection='bodies' must be one of"):
        SpectralDistillationLoss(_net(0), selection="bodies")
    with pytest.raises(ValueError, match="selection='kernels' selects none"):
        SpectralDistillationLoss(nn.LayerNorm(3))
    with pytest.raises(ValueError, match=r"ratio=2.0"):
        SpectralDistillationLoss(_net(0), ratio=2.0)
    with pytest.raises(ValueError, match="should have the shape"):
        SpectralDistillationLoss(_net(0))(MLP(4, [6], 3))
