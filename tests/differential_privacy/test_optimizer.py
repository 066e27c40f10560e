"""The mixin over each of Opacus' optimizers: noise from one place, constants that stay."""

from typing import Any

import pytest
import torch
from opacus.accountants import RDPAccountant
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from opacus.optimizers import (
    DistributedDPOptimizer,
    DistributedDPOptimizerFastGradientClipping,
    DPOptimizer,
    DPOptimizerFastGradientClipping,
)
from opacus.schedulers import ExponentialNoise
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from lit_methods.differential_privacy import (
    CorrelatedNoise,
    CorrelatedNoiseOptimizer,
    GhostCorrelatedNoiseOptimizer,
    GhostGradients,
)
from lit_methods.differential_privacy.optimizer import (
    DistributedCorrelatedNoiseOptimizer,
    DistributedGhostCorrelatedNoiseOptimizer,
)
from tests.gloo import GlooPool

CURVE = torch.tensor([1.0, 0.5, 0.375])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def noise(dimension: int, steps: int = 6) -> CorrelatedNoise:
    return CorrelatedNoise(CURVE, dimension, steps, generator_seed=1)


def wrapped(model: nn.Module, kind: Any = CorrelatedNoiseOptimizer, std: float = 0.5, **options: Any) -> Any:
    return kind(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        noise=noise(sum(p.numel() for p in model.parameters())),
        noise_std=std,
        max_grad_norm=0.7,
        expected_batch_size=8,
        **options,
    )


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (3 * torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(count)
    ]


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def per_sample_run(std: float = 0.5, kind: Any = CorrelatedNoiseOptimizer) -> Tensor:
    model = network()
    GradSampleHooks(model)
    optimizer = wrapped(model, kind, std)
    for inputs, labels in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return flat(model)


@pytest.mark.parametrize(
    ("name", "value"),
    [("noise_std", -1.0), ("noise_std", float("inf")), ("max_grad_norm", float("nan")), ("expected_batch_size", 0)],
)
def test_constants_out_of_range_are_refused(name: str, value: float) -> None:
    model = network()
    options: dict[str, Any] = {"noise_std": 0.5, "max_grad_norm": 0.7, "expected_batch_size": 8, name: value}
    with pytest.raises(ValueError, match=f"{name}={value} must be .*, and finite"):
        CorrelatedNoiseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), noise=noise(38), **options)


def test_ghost_and_per_sample_make_the_same_update() -> None:
    model = network()
    gradients = GhostGradients(model, 0.7)
    optimizer = wrapped(model, GhostCorrelatedNoiseOptimizer, gradients=gradients)
    for inputs, labels in batches():
        optimizer.zero_grad()
        gradients.backward(nn.functional.cross_entropy(model(inputs), labels, reduction="none"))
        optimizer.step()
    torch.testing.assert_close(flat(model), per_sample_run(), rtol=0, atol=1e-5)


def test_opacus_own_ghost_loss_works_too() -> None:
    model = network()
    hooks = GradSampleHooksFastGradientClipping(model, max_grad_norm=0.7)
    optimizer = wrapped(model, GhostCorrelatedNoiseOptimizer)
    criterion = DPLossFastGradientClipping(hooks, optimizer, nn.CrossEntropyLoss())
    for inputs, labels in batches():
        optimizer.zero_grad()
        criterion(model(inputs), labels).backward()
        optimizer.step()
    torch.testing.assert_close(flat(model), per_sample_run(), rtol=0, atol=1e-5)


def test_the_noise_is_the_recurrence_in_every_variant() -> None:
    """One step on a loss whose gradient is zero leaves the noise alone in the weights."""
    for kind in (CorrelatedNoiseOptimizer, GhostCorrelatedNoiseOptimizer):
        model = nn.Linear(50, 1, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = wrapped(model, kind, std=2.0)
        own = noise(50)
        for _ in range(2):
            before = model.weight.detach().clone()
            optimizer.original_optimizer.param_groups[0]["momentum"] = 0.0
            optimizer.zero_grad()
            model.weight.grad_sample = None
            optimizer.step()
            expected = -0.1 * 2.0 * 0.7 / 8 * own.next()
            torch.testing.assert_close((model.weight - before).flatten(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", [CorrelatedNoiseOptimizer, GhostCorrelatedNoiseOptimizer])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_multiplier", 0.1),
        ("max_grad_norm", 0.1),
        ("expected_batch_size", 16),
        ("_adjusted_noise_multiplier", 0.1),
    ],
)
def test_constants_stay(kind: Any, name: str, value: float) -> None:
    optimizer = wrapped(network(), kind)
    with pytest.raises(RuntimeError, match=rf"{name.lstrip('_')} can't change from [\d.]+ to {value}"):
        setattr(optimizer, name, value)
    setattr(optimizer, name, 0.5 if name == "_adjusted_noise_multiplier" else getattr(optimizer, name))


def test_a_noise_schedule_is_refused_when_it_changes_something() -> None:
    optimizer = wrapped(network())
    schedule = ExponentialNoise(optimizer, gamma=0.9)
    with pytest.raises(RuntimeError, match=r"noise_multiplier can't change from 0\.5 to 0\.45"):
        schedule.step()


def test_opacus_accountants_are_refused() -> None:
    model = network()
    GradSampleHooks(model)
    optimizer = wrapped(model)
    optimizer.attach_step_hook(RDPAccountant().get_optimizer_hook_fn(sample_rate=0.1))
    nn.functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    before = flat(model)
    with pytest.raises(RuntimeError, match="Opacus' accountants take the noise of each step as independent"):
        optimizer.step()
    assert torch.equal(flat(model), before)


def test_a_plain_backward_pass_is_refused_under_ghost_clipping() -> None:
    model = network()
    gradients = GhostGradients(model, 0.7)
    optimizer = wrapped(model, GhostCorrelatedNoiseOptimizer, gradients=gradients)
    nn.functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    with pytest.raises(RuntimeError, match="which ghost clipping can't clip"):
        optimizer.step()


def test_a_gradient_that_was_not_cleared_is_refused_under_ghost_clipping() -> None:
    model = network()
    gradients = GhostGradients(model, 0.7)
    optimizer = wrapped(model, GhostCorrelatedNoiseOptimizer, gradients=gradients)
    for step in range(2):
        inputs, labels = batches()[step]
        gradients.backward(nn.functional.cross_entropy(model(inputs), labels, reduction="none"))
        if step == 0:
            optimizer.step()
    with pytest.raises(ValueError, match="haven't been cleared"):
        optimizer.step()


def test_the_state_dict_is_the_wrapped_optimizers() -> None:
    model = network()
    GradSampleHooks(model)
    optimizer = wrapped(model)
    nn.functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    optimizer.step()
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups"}
    other = wrapped(model)
    other.load_state_dict(state)
    assert torch.equal(
        other.original_optimizer.state_dict()["state"][0]["momentum_buffer"], state["state"][0]["momentum_buffer"]
    )
    other.noise.load_state_dict(optimizer.noise.state_dict())
    assert torch.equal(other.noise.next(), optimizer.noise.next())


def test_a_learning_rate_schedule_works_on_the_private_optimizer() -> None:
    model = network()
    GradSampleHooks(model)
    optimizer = wrapped(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step()
    schedule.step()
    assert optimizer.original_optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def shares(rank: int, world_size: int, ghost: bool) -> Tensor:
    """Trains on this process's half of each batch with the classes that derive from Opacus' distributed ones."""
    model = network()
    if ghost:
        gradients = GhostGradients(model, 0.7)
        optimizer = wrapped(model, DistributedGhostCorrelatedNoiseOptimizer, gradients=gradients)
    else:
        GradSampleHooks(model)
        optimizer = wrapped(model, DistributedCorrelatedNoiseOptimizer)
    for inputs, labels in batches():
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(
            model(inputs[rank::world_size]), labels[rank::world_size], reduction="none"
        )
        if ghost:
            gradients.backward(losses)
        else:
            losses.mean().backward()
        optimizer.step()
    return flat(model)


@pytest.mark.ddp
@pytest.mark.parametrize("ghost", [False, True])
def test_distributed_variants_equal_one_process(gloo: GlooPool, ghost: bool) -> None:
    first, second = gloo.run(shares, ghost)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, per_sample_run(), rtol=1e-4, atol=1e-5)


def test_the_variants_are_opacus_optimizers() -> None:
    assert issubclass(CorrelatedNoiseOptimizer, DPOptimizer)
    assert issubclass(GhostCorrelatedNoiseOptimizer, DPOptimizerFastGradientClipping)
    assert issubclass(DistributedCorrelatedNoiseOptimizer, DistributedDPOptimizer)
    assert issubclass(DistributedGhostCorrelatedNoiseOptimizer, DistributedDPOptimizerFastGradientClipping)
