"""bf16-mixed fits of what the battery leaves out: joint training and each strategy; risk and weights in float32.

The frozen diffusion, the discriminator and FixMatch run in bf16 in `tests/battery/test_loops.py`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_methods.semi_supervised import (
    FixAStep,
    FixMatch,
    FrozenRelevance,
    IOMatch,
    JointRelevance,
    MixMatch,
    OpenMatch,
    PULoss,
    Strategy,
    Supervised,
)
from tests.battery.trainers import BackwardLosses, toy_trainer
from tests.entries.toys import Parts
from tests.semi_supervised.toys import tiny_classifier, tiny_diffusion, tiny_discriminator, toy_data


def _losses(make: Any, folder: Path) -> list[Tensor]:
    """Losses of an epoch in float32 and in bf16-mixed."""
    runs = []
    for precision in ("32-true", "bf16-mixed"):
        module, losses, data = make(), BackwardLosses(), toy_data()
        parts = Parts(module, [], data)
        toy_trainer(parts, folder, losses, precision=precision, max_epochs=1).fit(module, datamodule=data)
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        runs.append(torch.tensor(losses.values))
    return runs


@pytest.mark.parametrize(
    "strategy",
    [
        Supervised(),
        FixMatch(0.5),
        MixMatch(unlabeled_weight=1.0),
        OpenMatch(start_epoch=0),
        IOMatch(0.5, start_epoch=0),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_strategies_in_bf16_are_near_float32(strategy: Strategy, tmp_path: Path) -> None:
    full, half = _losses(lambda: tiny_classifier(strategy), tmp_path)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)
    assert not torch.equal(half, full)


def test_gated_gradients_in_bf16_are_near_float32(tmp_path: Path) -> None:
    full, half = _losses(lambda: tiny_classifier(FixAStep(FixMatch(0.5))), tmp_path)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)
    assert not torch.equal(half, full)


def test_joint_diffusion_in_bf16_is_near_float32(tmp_path: Path) -> None:
    full, half = _losses(lambda: tiny_diffusion(relevance=JointRelevance(tiny_discriminator(), PULoss(0.5))), tmp_path)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)
    assert not torch.equal(half, full)


@pytest.mark.parametrize("joint", [False, True])
def test_risk_and_weights_are_float32_under_autocast(joint: bool) -> None:
    network, data = tiny_discriminator(), toy_data()
    relevance = JointRelevance(network, PULoss(0.5)) if joint else FrozenRelevance(network, 0.5)
    images, pool = data.labeled.tensors[0][:8], data.pool.tensors[0][:16]
    exact, risk = relevance(images, pool, torch.arange(16))
    relevance.start()
    with torch.autocast("cpu", torch.bfloat16):
        assert network(images).dtype == torch.bfloat16
        weight, found = relevance(images, pool, torch.arange(16))
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, exact, rtol=0.05, atol=0.05)
    if joint:
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, risk, rtol=0.05, atol=0.05)
