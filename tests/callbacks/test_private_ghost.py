"""Ghost clipping under Lightning's automatic optimization."""

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from tests.callbacks.toys import Toy, flat, private, toy_loader, toy_trainer


class Single(Toy):
    """Knows the loss of a single example."""

    def per_sample_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.per_sample_loss(batch).mean()


class Summed(Single):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.per_sample_loss(batch).sum()


class Regularized(Single):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.per_sample_loss(batch).mean() + self.net[0].weight.square().sum()


class Twice(Single):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return 0.5 * (self.per_sample_loss(batch) + self.per_sample_loss(batch)).mean()


class Unlinked(Single):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


def fitted(model: Toy, trainer: Any = None, **options: Any) -> Tensor:
    toy_trainer(private(max_grad_norm=0.5, **options), **(trainer or {})).fit(model, toy_loader(batch_size=4))
    return flat(model)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_trains_to_the_same_weights_as_per_sample_clipping(accumulation: int) -> None:
    trainer = {"accumulate_grad_batches": accumulation}
    expected = fitted(Single(), trainer)
    torch.testing.assert_close(fitted(Single(), trainer, clipping="ghost"), expected, rtol=0, atol=1e-5)
    result = fitted(Summed(), trainer, clipping="ghost", loss_reduction="sum")
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        (Toy, {}, r"Toy has no method per_sample_loss\(batch\)"),
        (Regularized, {}, "and can't be clipped. Put it into per_sample_loss"),
        (Twice, {}, "A Linear runs a second time before the backward pass"),
        (Unlinked, {}, "called per_sample_loss 0 times"),
        (Summed, {}, "but the mean of per_sample_loss is"),
        (Single, {"precision": "bf16-mixed"}, "16-bit precision"),
    ],
)
def test_what_it_cannot_clip_is_refused(model: type[Toy], options: dict[str, Any], match: str) -> None:
    module = model()
    with pytest.raises(MisconfigurationException, match=match):
        fitted(module, options, clipping="ghost")
    assert torch.equal(flat(module), flat(Toy()))
    assert not {"per_sample_loss", "backward", "autograd_grad_sample_hooks"} & set(module.__dict__)
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in module.modules())


def test_the_module_gets_its_methods_back() -> None:
    module = Single()
    fitted(module, clipping="ghost")
    assert not {"per_sample_loss", "backward"} & set(module.__dict__)
    assert not {name for p in module.parameters() for name in p.__dict__}
