"""Workloads against what PyTorch's own optimizers do with one unit gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_methods.differential_privacy import Workload


def impulse_response(make: Any, steps: int = 60) -> Tensor:
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = make([weight])
    response = []
    for step in range(steps):
        weight.grad = torch.full_like(weight, float(step == 0))
        optimizer.step()
        response.append(float(weight.detach()))
    return torch.tensor(response, dtype=torch.float64) / response[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "weight_decay": 5e-4},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"weight_decay": 0.3},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
        {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01},
    ],
)
def test_sgd_is_mapped_exactly(options: dict[str, Any]) -> None:
    def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, **options)

    workload = Workload.from_optimizer(make([torch.nn.Parameter(torch.zeros(1))]))
    column = workload.first_column(60)
    torch.testing.assert_close(column, impulse_response(make), rtol=1e-9, atol=1e-10)
    root = workload.square_root(60)
    squared = torch.stack([(root[: j + 1] * root[: j + 1].flip(0)).sum() for j in range(60)])
    torch.testing.assert_close(squared, column, rtol=1e-9, atol=1e-10)


def test_the_papers_family_is_recognized() -> None:
    def of(**options: Any) -> Workload:
        return Workload.from_optimizer(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, **options))

    assert (of().weight_decay_factor, of().momentum) == (1.0, 0.0)
    assert (of(momentum=0.9).weight_decay_factor, of(momentum=0.9).momentum) == (1.0, 0.9)
    assert of(momentum=0.9, weight_decay=0.1).momentum is None


def test_a_scheduler_that_warms_up_does_not_change_the_workload() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=1e-3)
    before = Workload.from_optimizer(optimizer)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01)
    assert optimizer.param_groups[0]["lr"] < 0.1
    assert Workload.from_optimizer(optimizer) == before


def test_adaptive_optimizers_give_their_first_moment_and_decoupled_decay() -> None:
    weight = [torch.nn.Parameter(torch.zeros(1))]
    adamw = Workload.from_optimizer(torch.optim.AdamW(weight, lr=0.01, betas=(0.8, 0.99), weight_decay=0.1))
    adam = Workload.from_optimizer(torch.optim.Adam(weight, lr=0.01, weight_decay=0.1))
    assert (adamw.momentum, adamw.weight_decay_factor) == (0.8, pytest.approx(0.999))
    assert (adam.momentum, adam.weight_decay_factor) == (0.9, 1.0)
