"""Buffers that learn and losses that mix examples are noticed; what only looks like it is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lit_methods.differential_privacy.probes import BufferWatch, check_loss_mixing


class Watched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.metric = nn.Linear(3, 3), MulticlassAccuracy(3)
        self.register_buffer("mean", torch.tensor([0.0, torch.nan]))
        self.register_buffer("mask", torch.ones(2, dtype=torch.bool))
        self.metric.register_buffer("seen", torch.zeros(1))


def test_what_stays_passes() -> None:
    module = Watched()
    watch = BufferWatch(module)
    module.metric.update(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    module.metric.seen += 1
    with torch.no_grad():
        module.layer.weight += 1
    module.mean = module.mean.clone()
    watch.check()


def add_one(module: Watched) -> None:
    module.mean += 1


def replace(module: Watched) -> None:
    module.mask = torch.zeros(2, dtype=torch.bool)


def drop(module: Watched) -> None:
    del module.mask


def grow(module: Watched) -> None:
    module.register_buffer("queue", torch.zeros(2))


@pytest.mark.parametrize(("change", "name"), [(add_one, "mean"), (replace, "mask"), (drop, "mask"), (grow, "queue")])
def test_what_changes_is_named(change: Callable[[Watched], None], name: str) -> None:
    module = Watched()
    watch, allowing = BufferWatch(module), BufferWatch(module, [f"{name[:2]}*"])
    change(module)
    with pytest.raises(MisconfigurationException, match=rf"\['{name}'\].*allowed_buffers"):
        watch.check()
    allowing.check()


Batch = tuple[Tensor, Tensor]


def per_sample(module: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


def mean(module: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


def weighted(module: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1], weight=torch.tensor([1.0, 5.0, 0.2]))


def contrastive(module: nn.Module, batch: Batch) -> Tensor:
    hidden = module(batch[0])
    return nn.functional.cross_entropy(hidden @ hidden.T, torch.arange(len(hidden)), reduction="none")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def example_batch(size: int = 6) -> Any:
    return (torch.randn(size, 4), torch.arange(size) % 3)


@pytest.mark.parametrize("loss", [per_sample, mean])
def test_sums_and_means_over_examples_pass(loss: Callable[..., Tensor]) -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    check_loss_mixing(module, loss, example_batch())
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("loss", [weighted, contrastive])
def test_losses_that_mix_examples_are_refused(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(MisconfigurationException, match="the loss mixes examples"):
        check_loss_mixing(network(), loss, example_batch())


def test_one_example_is_too_few() -> None:
    with pytest.raises(ValueError, match=r"at least 2 examples, but its tensors hold \[1, 1\]"):
        check_loss_mixing(network(), mean, example_batch(1))
