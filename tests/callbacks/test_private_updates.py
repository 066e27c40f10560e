"""What the callback does to the weights, against loops and closed forms written here."""

import math

import pytest
import torch
from lightning.pytorch import LightningModule
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_methods.differential_privacy import FixedOrderBatchSampler
from lit_methods.differential_privacy.functional import gaussian_noise_multiplier, toeplitz_sensitivity
from tests.callbacks.toys import EXAMPLES, Judged, Toy, flat, private, toy_data, toy_loader, toy_trainer


def clipped_sgd(model: Toy, batch_size: int, epochs: int, max_grad_norm: float) -> Tensor:
    """One example at a time, clipped, summed, divided by the constant batch size."""
    optimizer = model.configure_optimizers()
    data = toy_data()
    for _ in range(epochs):
        for batch in FixedOrderBatchSampler(EXAMPLES, batch_size):
            total = [torch.zeros_like(p) for p in model.parameters()]
            for index in batch:
                inputs, label = data[index]
                loss = nn.functional.cross_entropy(model.net(inputs[None]), label[None])
                gradients = torch.autograd.grad(loss, list(model.parameters()))
                norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
                for sum_, gradient in zip(total, gradients, strict=True):
                    sum_ += gradient * min(1.0, max_grad_norm / norm)
            for p, sum_ in zip(model.parameters(), total, strict=True):
                p.grad = sum_ / batch_size
            optimizer.step()
    return flat(model)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_without_noise_it_is_clipped_sgd(accumulation: int) -> None:
    model = Toy()
    trainer = toy_trainer(private(noise_multiplier=0.0, max_grad_norm=0.5), accumulate_grad_batches=accumulation)
    trainer.fit(model, toy_loader(batch_size=8 // accumulation))
    expected = clipped_sgd(Toy(), batch_size=8, epochs=3, max_grad_norm=0.5)
    assert trainer.global_step == 3 * 6
    torch.testing.assert_close(flat(model), expected, rtol=1e-4, atol=1e-6)


def test_without_noise_it_equals_opacus_bit_for_bit() -> None:
    model = Toy()
    toy_trainer(private(noise_multiplier=0.0, max_grad_norm=0.5)).fit(model, toy_loader())
    other = Toy()
    other.net[1].inplace = False
    GradSampleHooks(other)
    optimizer = DPOptimizer(
        other.configure_optimizers(), noise_multiplier=0.0, max_grad_norm=0.5, expected_batch_size=8
    )
    loader = DataLoader(toy_data(), batch_sampler=FixedOrderBatchSampler(EXAMPLES, 8))
    for _ in range(3):
        for batch in loader:
            optimizer.zero_grad()
            other.training_step(batch, 0).backward()
            optimizer.step()
    assert torch.equal(flat(model), flat(other))


def test_a_huge_noise_ruins_the_model() -> None:
    def accuracy(noise_multiplier: float) -> float:
        trainer = toy_trainer(private(noise_multiplier=noise_multiplier), max_epochs=20)
        trainer.fit(Judged(), toy_loader(), DataLoader(toy_data(), batch_size=EXAMPLES))
        return float(trainer.callback_metrics["val/acc"])

    assert accuracy(0.0) > 0.9
    assert accuracy(1000.0) < 0.7


class Linear(LightningModule):
    """A loss that is linear in the weights, so that the gradient does not depend on them."""

    def __init__(self, momentum: float, weight_decay: float) -> None:
        super().__init__()
        self.layer = nn.Linear(5000, 1, bias=False)
        nn.init.zeros_(self.layer.weight)
        self.options = {"lr": 0.1, "momentum": momentum, "weight_decay": weight_decay}

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        return self.layer(batch[0]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), **self.options)


def impulse_response(options: dict[str, float], steps: int) -> Tensor:
    """What PyTorch's SGD makes of one unit gradient in its first step, in units of the learning rate."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], **options)
    response = []
    for step in range(steps):
        weight.grad = torch.full_like(weight, float(step == 0))
        optimizer.step()
        response.append(-float(weight.detach()) / options["lr"])
    return torch.tensor(response, dtype=torch.float64)


@pytest.mark.parametrize(("momentum", "weight_decay", "bandwidth"), [(0.0, 0.0, 4), (0.9, 0.0, 5), (0.9, 0.05, 3)])
def test_noise_in_the_weights_has_the_stated_variance(momentum: float, weight_decay: float, bandwidth: int) -> None:
    """Var of theta_T is (lr sigma zeta sens / B)^2 times the squared last row of B = A C^-1."""
    data = TensorDataset(torch.randn(20, 5000, generator=torch.Generator().manual_seed(1)))
    runs = []
    for noise_multiplier in (2.0, 0.0):
        model = Linear(momentum, weight_decay)
        callback = private(noise_multiplier=noise_multiplier, max_grad_norm=3.0, bandwidth=bandwidth)
        toy_trainer(callback, max_epochs=4).fit(model, DataLoader(data, batch_size=4))
        runs.append(flat(model))
        strategy = callback.plan.accounting.strategy
    workload = impulse_response(Linear(momentum, weight_decay).options, steps=20)
    inverse = torch.linalg.inv(
        sum(torch.diag(torch.full((20 - j,), float(c)), -j) for j, c in enumerate(strategy.coefficients)).double()
    )
    decoder = workload.flip(0)[None] @ inverse
    sensitivity = toeplitz_sensitivity(strategy.coefficients, 20, 4, 5)
    expected = 0.1 * 2.0 * 3.0 * sensitivity / 4 * float(decoder.norm())
    measured = float((runs[0] - runs[1]).std())
    assert measured == pytest.approx(expected, rel=0.05)
    assert abs(float((runs[0] - runs[1]).mean())) < 4 * expected / math.sqrt(5000)


def test_the_noise_is_calibrated_to_the_whole_run() -> None:
    callback = private(epsilon=2.0, delta=1e-6, bandwidth=3)
    toy_trainer(callback).fit(Toy(), toy_loader())
    accounting = callback.plan.accounting
    assert accounting.strategy.participation.steps == 18
    assert accounting.strategy.participation.separation == 6
    assert accounting.strategy.participation.participations == 3
    assert accounting.noise_multiplier == gaussian_noise_multiplier(2.0, 1e-6)
    expected = accounting.noise_multiplier * toeplitz_sensitivity(accounting.strategy.coefficients, 18, 3, 6)
    assert accounting.noise_std == pytest.approx(expected, rel=1e-5)
    assert accounting.noise_std > expected


class Lame(Toy):
    """Has a layer that never gets a gradient, and one example whose gradient is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(4, 4)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs = torch.where(batch[0][:, :1] == toy_data().tensors[0][7, 0], torch.nan, batch[0])
        return nn.functional.cross_entropy(self.net(inputs), batch[1])


def test_every_parameter_gets_noise_and_an_infinite_gradient_counts_as_zero() -> None:
    model = Lame()
    before = model.unused.weight.detach().clone()
    toy_trainer(private(), max_epochs=1).fit(model, toy_loader())
    assert (model.unused.weight != before).all()
    assert torch.isfinite(flat(model)).all()


def test_the_noise_comes_from_entropy_and_not_from_the_global_seed() -> None:
    def weights() -> Tensor:
        model = Toy()
        torch.manual_seed(1)
        toy_trainer(private(unsafe_seed=None), max_epochs=1).fit(model, toy_loader())
        return flat(model)

    assert not torch.allclose(weights(), weights())


def test_bf16_and_adam_and_schedulers_run() -> None:
    class Scheduled(Toy):
        def configure_optimizers(self) -> dict[str, object]:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}

    callback = private()
    trainer = toy_trainer(callback, precision="bf16-mixed")
    model = Scheduled()
    trainer.fit(model, toy_loader())
    assert callback.plan.accounting.strategy.workload.weight_decay_factor == pytest.approx(0.999)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.00125)
    assert torch.isfinite(flat(model)).all()


def test_the_noise_depends_on_its_seed_and_not_on_the_data() -> None:
    def state(inputs: Tensor, seed: int) -> dict[str, Tensor]:
        callback = private(unsafe_seed=seed)
        data = TensorDataset(inputs, toy_data().tensors[1])
        toy_trainer(callback, max_epochs=1).fit(Toy(), DataLoader(data, batch_size=8))
        return callback.state_dict()["noise"]

    inputs = toy_data().tensors[0]
    first, other_data, other_seed = state(inputs, 3), state(-3 * inputs, 3), state(inputs, 4)
    assert torch.equal(first["rows"], other_data["rows"])
    assert torch.equal(first["generator"], other_data["generator"])
    assert not torch.equal(first["rows"], other_seed["rows"])
