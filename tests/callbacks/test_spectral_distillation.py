"""The callback adds exactly the term's gradient, once for each step, in whatever way Lightning steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lit_methods import Classifier, SpectralDistillation
from lit_methods.backbones import MLP
from lit_methods.federated import spectral_divergence
from tests.battery.trainers import Recorder, toy_trainer
from tests.entries.toys import CLASSES, FEATURES, Parts, ToyData, toy_network, toy_tensors

LR = 0.1


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=LR)


def _teacher() -> nn.Module:
    torch.manual_seed(8)
    return MLP(FEATURES, [6], CLASSES)


def _fit(folder: Path, callback: SpectralDistillation | None, batch_size: int = 8, **options: Any) -> LightningModule:
    module = Classifier(toy_network(), CLASSES, optimizer=_sgd)
    parts = Parts(module, [] if callback is None else [callback], ToyData(*toy_tensors(), batch_size=batch_size))
    toy_trainer(parts, folder, max_epochs=2, **options).fit(module, datamodule=parts.data)
    return module


def _reference(weight: float, ratio: float, batch_size: int, teacher: nn.Module) -> list[Tensor]:
    network = toy_network()
    inputs, labels = toy_tensors()
    for _ in range(2):
        for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
            kernels = [[p for p in net.parameters() if p.ndim >= 2] for net in (network, teacher)]
            loss = nn.functional.cross_entropy(network(x), y) + weight * spectral_divergence(*kernels, ratio)
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                for p, gradient in zip(network.parameters(), gradients, strict=True):
                    p.sub_(LR * gradient)
    return list(network.parameters())


@pytest.mark.parametrize("ratio", [0.4, 1.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_those_of_the_sum(ratio: float, accumulate: int, tmp_path: Path) -> None:
    callback = SpectralDistillation(5.0, _teacher(), ratio, submodule="network")
    module = _fit(tmp_path, callback, 8 // accumulate, accumulate_grad_batches=accumulate)
    expected = _reference(5.0, ratio, 8, _teacher())
    for found, p in zip(module.network.parameters(), expected, strict=True):
        torch.testing.assert_close(found, p, rtol=1e-5, atol=1e-6)
    plain = _fit(tmp_path, None)
    assert not torch.allclose(next(plain.parameters()), expected[0], atol=1e-3)


def test_weight_zero_changes_nothing_but_is_measured(tmp_path: Path) -> None:
    log = Recorder()
    with_callback = _fit(tmp_path, SpectralDistillation(0.0), logger=log)
    torch.testing.assert_close(with_callback.state_dict(), _fit(tmp_path, None).state_dict(), rtol=0, atol=0)
    kl = [row["spec/kl"] for _, row in log.rows if "spec/kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > kl[0]
    assert not any("spec/grad_ratio" in row for _, row in log.rows)


def test_without_a_teacher_training_stays_near_its_start(tmp_path: Path) -> None:
    last = {}
    for weight in (1e-6, 50.0):
        log = Recorder()
        _fit(tmp_path, SpectralDistillation(weight), logger=log)
        last[weight] = [row["spec/kl"] for _, row in log.rows if "spec/kl" in row][-1]
        assert all(row["spec/grad_ratio"] >= 0 for _, row in log.rows if "spec/grad_ratio" in row)
    assert last[50.0] < 0.8 * last[1e-6]


class _TwoOptimizers(LightningModule):
    """Manual optimization; each optimizer has one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = toy_network()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(0 * sum(p.sum() for p in self.network.parameters()))
            optimizer.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        layers = [layer for layer in self.network if list(layer.parameters())]
        return [_sgd(layer.parameters()) for layer in layers]


def test_manual_optimization_with_two_optimizers(tmp_path: Path) -> None:
    module, teacher = _TwoOptimizers(), _teacher()
    parts = Parts(module, [SpectralDistillation(5.0, teacher, submodule="network")], ToyData(*toy_tensors()))
    toy_trainer(parts, tmp_path, max_steps=2, max_epochs=-1).fit(module, datamodule=parts.data)
    network = toy_network()
    kernels = [[p for p in net.parameters() if p.ndim >= 2] for net in (network, teacher)]
    for p in kernels[0]:
        (gradient,) = torch.autograd.grad(5.0 * spectral_divergence(*kernels), p)
        with torch.no_grad():
            p.sub_(LR * gradient)
    for found, p in zip(module.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(found, p, rtol=1e-5, atol=1e-7)


def test_another_networks_spectrum_is_refused_on_resume(tmp_path: Path) -> None:
    callback = SpectralDistillation(1.0)
    _fit(tmp_path, callback)
    saved = callback.state_dict()

    class Resumed(SpectralDistillation):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.load_state_dict(saved)
            super().on_fit_start(trainer, pl_module)

    with pytest.raises(ValueError, match="it belongs to another network, ratio or layout"):
        _fit(tmp_path, Resumed(1.0, ratio=0.5))


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weight=-1.0 must be at least 0"):
        SpectralDistillation(-1.0)
    with pytest.raises(ValueError, match=r"ratio=0.0 must lie in"):
        SpectralDistillation(1.0, ratio=0.0)
    with pytest.raises(ValueError, match="should have the shape"):
        _fit(tmp_path, SpectralDistillation(1.0, MLP(FEATURES, [7], CLASSES), submodule="network"))
    with pytest.raises(AttributeError, match="no attribute"):
        _fit(tmp_path, SpectralDistillation(1.0, submodule="nowhere"))
