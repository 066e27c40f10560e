"""The classifier: what it steps on, what it selects, how it gates, and that the truth about the pool has no part."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lit_methods.semi_supervised import (
    FixAStep,
    FixMatch,
    FixMatchCosine,
    IOMatch,
    MixMatch,
    OpenMatch,
    RandAugment,
    SemiSupervisedClassifier,
    Strategy,
    Supervised,
    WeakAugmentation,
)
from lit_methods.semi_supervised import augmentation as home
from lit_methods.semi_supervised.strategies import Losses, Step
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Parts
from tests.semi_supervised.toys import tiny_backbone, tiny_classifier, toy_data

STRATEGIES = [
    Supervised(0.1),
    FixMatch(0.5),
    MixMatch(unlabeled_weight=1.0),
    OpenMatch(start_epoch=1),
    IOMatch(0.5),
    FixAStep(FixMatch(0.5)),
]


def _fit(module: SemiSupervisedClassifier, folder: Path, data: Any = None, **trainer: Any) -> Any:
    data = data or toy_data()
    fitted = toy_trainer(Parts(module, [], data), folder, **({"max_epochs": 2} | trainer))
    fitted.fit(module, datamodule=data)
    return fitted


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_every_strategy_learns_and_the_truth_about_the_pool_has_no_part(strategy: Strategy, tmp_path: Path) -> None:
    weights = []
    for known in (torch.zeros(96), torch.ones(96)):
        module = tiny_classifier(strategy, weak=WeakAugmentation(0.25, False))
        trainer = _fit(module, tmp_path, toy_data(known=known), max_epochs=12)
        weights.append(module.state_dict())
        assert float(trainer.callback_metrics["val/acc"]) > 0.8
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name])


def test_synthetic_images_are_trained_on_with_their_labels(tmp_path: Path) -> None:
    seen: list[Step] = []

    class Spy(Supervised):
        def losses(self, step: Step) -> Losses:
            seen.append(step)
            return super().losses(step)

    _fit(tiny_classifier(Spy()), tmp_path, toy_data(synthetic=True), max_epochs=1)
    assert seen[0].second_labels.tolist() == [0, 1] * 8
    assert [step.progress for step in seen] == [i / 6 for i in range(6)]


class Opposed(Strategy):
    """Two losses whose gradients point in the same or the opposite direction."""

    gates_gradients = True

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def losses(self, step: Step) -> Losses:
        loss = nn.functional.cross_entropy(step.network(step.labeled), step.labels)
        return Losses(loss, self.sign * loss, 0.5)


@pytest.mark.parametrize(("sign", "factor"), [(1.0, 1.5), (-1.0, 1.0)])
def test_harmful_unlabelled_gradient_is_dropped(sign: float, factor: float, tmp_path: Path) -> None:
    module, twin, data = tiny_classifier(Opposed(sign)), tiny_classifier(Supervised()), toy_data()
    trainer = _fit(module, tmp_path, data, max_epochs=1, limit_train_batches=1)
    images, labels = next(iter(data.train_dataloader()))[0]["labeled"]
    nn.functional.cross_entropy(twin.network(images), labels).backward()
    for p, q in zip(module.network.parameters(), twin.network.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * factor * q.grad)
    assert float(trainer.callback_metrics["train/agree"]) == (sign > 0)


@pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no `val_dataloader`"
)  # toys without validation
def test_openmatch_selects_the_pool_before_the_epoch_by_the_average(tmp_path: Path) -> None:
    seen: list[Step] = []

    class Spy(OpenMatch):
        def losses(self, step: Step) -> Losses:
            seen.append(step)
            return super().losses(step)

        def select(self, network: Any, images: Tensor) -> Tensor:
            assert network is module.ema.network
            return images.mean((1, 2, 3)) > 0

    module, data = tiny_classifier(Spy(start_epoch=1)), toy_data()
    _fit(module, tmp_path, data)
    assert all(step.selected is None for step in seen[:6])
    for step in seen[6:]:
        assert torch.equal(step.selected, step.second.mean((1, 2, 3)) > 0)
    trainer = toy_trainer(Parts(module, [], data), tmp_path, max_epochs=2)
    with pytest.raises(MisconfigurationException, match="goes through the pool before each epoch"):
        trainer.fit(tiny_classifier(OpenMatch(start_epoch=0)), data.train_dataloader(), data.val_dataloader())


def test_average_is_what_is_evaluated(tmp_path: Path) -> None:
    module, data = tiny_classifier(Supervised()), toy_data()
    trainer = _fit(module, tmp_path, data)
    images = next(iter(data.test_dataloader()))[0]
    expected = module.ema.network(images).softmax(1)
    module.network.requires_grad_(False)
    for p in module.network.parameters():
        p.zero_()
    torch.testing.assert_close(trainer.predict(module, data.test_dataloader())[0], expected.detach())


def test_default_optimizer_spares_vectors_from_decay() -> None:
    optimizer = SemiSupervisedClassifier(tiny_backbone(), 6, 2).configure_optimizers()
    decays = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in optimizer.param_groups}
    assert decays == {5e-4: {2}, 0.0: {1}}
    assert optimizer.defaults["nesterov"]


def test_schedule_is_seven_sixteenths_of_a_cosine() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule = FixMatchCosine(optimizer, 10)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5 * math.cos(7 * math.pi * min(k, 10) / 160) for k in range(12)])
    with pytest.raises(ValueError, match="total_steps=0 must be at least 1"):
        FixMatchCosine(optimizer, 0)


@pytest.mark.parametrize("arguments", [{"num_classes": 1}, {"num_features": 0}])
def test_bad_sizes_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}="):
        SemiSupervisedClassifier(tiny_backbone(), **({"num_features": 6, "num_classes": 2} | arguments))


def test_weak_view_is_a_shifted_and_mirrored_image_of_its_own() -> None:
    images = torch.arange(2 * 36.0).view(2, 1, 6, 6).repeat(200, 1, 1, 1)
    views = WeakAugmentation(1 / 6)(images)
    padded = nn.functional.pad(images[:2], (1, 1, 1, 1), mode="reflect")
    crops = [padded[:, :, y : y + 6, x : x + 6] for y in range(3) for x in range(3)]
    crops += [crop.flip(-1) for crop in crops]
    found = set()
    for i, view in enumerate(views):
        matches = [j for j, crop in enumerate(crops) if torch.equal(crop[i % 2], view)]
        assert matches
        found.add((i % 2, matches[0]))
    assert len(found) == 36
    unmirrored = WeakAugmentation(0.0, horizontal_flip=False)
    assert torch.equal(unmirrored(images), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_strong_view_changes_images_apart_and_stays_in_range(channels: int) -> None:
    images = torch.rand(1, channels, 8, 8).expand(64, -1, -1, -1) * 2 - 1
    views = RandAugment()(images)
    assert views.shape == images.shape
    assert float(views.min()) >= -1
    assert float(views.max()) <= 1
    assert len({view.numpy().tobytes() for view in views}) > 55
    plain = RandAugment(num_ops=0, cutout=0.0, weak=nn.Identity())
    torch.testing.assert_close(plain(images), images)
    still = RandAugment(num_ops=1, magnitude=0.0, cutout=0.0, weak=nn.Identity())(images)
    assert sum(torch.allclose(view, image, atol=1 / 255) for view, image in zip(still, images, strict=True)) > 40


def test_operations_against_pixel_loops() -> None:
    views, half = torch.rand(2, 3, 4, 4), torch.full((2, 1, 1, 1), 0.5)
    plus = torch.ones(2, 1, 1, 1)
    torch.testing.assert_close(home._brightness(views, half, plus), 1.45 * views)
    torch.testing.assert_close(home._solarize(views, half, plus), torch.where(views >= 0.5, 1 - views, views))
    torch.testing.assert_close(home._posterize(views, half * 2, plus), (views * 255 / 16).floor() * 16 / 255)
    stretched = home._autocontrast(0.2 + 0.5 * views, half, plus)
    torch.testing.assert_close(stretched.amin((2, 3)), torch.zeros(2, 3))
    torch.testing.assert_close(stretched.amax((2, 3)), torch.ones(2, 3))
    image = torch.tensor([0, 0, 100, 255]).view(1, 1, 2, 2) / 255
    assert home._equalize(image, half[:1], plus[:1]).flatten().tolist() == pytest.approx([0, 0, 2 / 3, 1])
    moved = home._translate_x(views, torch.full((2, 1, 1, 1), 0.5 / 0.6), plus)
    torch.testing.assert_close(moved[..., :3], views[..., 1:])
    torch.testing.assert_close(moved[..., 3], torch.full((2, 3, 4), 0.5))
    grey = home._saturation(views, plus / 0.9, -plus)
    torch.testing.assert_close(grey, home._grey(views))
    spot = torch.full((1, 1, 5, 5), 0.5)
    spot[0, 0, 2, 2] = 1.0
    turned = home._rotate(spot, plus[:1], plus[:1])
    assert float(turned[0, 0, 2, 2]) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: WeakAugmentation(padding=1.0),
        lambda: RandAugment(num_ops=-1),
        lambda: RandAugment(magnitude=1.5),
        lambda: RandAugment(cutout=-0.1),
        lambda: RandAugment(value_range=(1.0, 0.0)),
    ],
)
def test_bad_augmentations_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        make()
