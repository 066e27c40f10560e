"""What validation draws from noise: the right classes, the judge's share, and no trace in training."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lit_methods.backbones import MLP
from lit_methods.classifier import Classifier
from lit_methods.semi_supervised import ClassifierJudge, ClassSamples, DiscriminatorWeightedDiffusion
from lit_methods.semi_supervised.figures import image_rows
from lit_methods.semi_supervised.pipeline import ClassTransformationPipeline
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Parts
from tests.semi_supervised.toys import GaussianPredictor, tiny_diffusion, toy_data

LIKE = torch.zeros(1, 1, 1, 1)


def _exact() -> ClassTransformationPipeline:
    """Class 0 lies at -2, class 1 at 2, the null class at 0.5; each with deviation 0.25."""
    scheduler = DDPMScheduler(beta_schedule="linear")
    pipeline = ClassTransformationPipeline(GaussianPredictor([-2.0, 2.0, 0.5], 0.25), scheduler, low=-9.0, high=9.0)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _fit(folder: Path, samples: ClassSamples, **trainer: Any) -> tuple[DiscriminatorWeightedDiffusion, Trainer]:
    module, data = tiny_diffusion(samples=samples), toy_data()
    fitted = toy_trainer(Parts(module, [], data), folder, **({"max_epochs": 2} | trainer))
    fitted.fit(module, datamodule=data)
    return module, fitted


def test_each_row_is_of_its_class_and_the_share_is_that_of_the_null_class() -> None:
    samples = ClassSamples(per_class=5, judge=lambda images: images.flatten() > 0.5, judged=400, num_inference_steps=20)
    rows, share = samples.draw(_exact(), LIKE, guidance_scale=1.0)
    assert [name for name, _ in rows] == ["class 0", "class 1", f"null class\n{float(share):.0%} known"]
    assert [len(images) for _, images in rows] == [5, 5, 5]
    for (_, images), mean in zip(rows, (-2.0, 2.0, 0.5), strict=True):
        assert (images - mean).abs().max() < 1
        assert images.std() > 0.05
    assert float(share) == pytest.approx(0.5, abs=0.1), "the null class lies around 0.5"
    certain = ClassSamples(judge=lambda images: (images.flatten() < 9).float() * 0.25, judged=3)
    assert certain.draw(_exact(), LIKE, 1.0, picture=False) == ([], torch.tensor(0.25))
    assert ClassSamples().draw(_exact(), LIKE, 1.0, picture=False) == ([], None)
    assert ClassSamples(per_class=0).draw(_exact(), LIKE, 1.0) == ([], None)


def test_same_noise_each_time_and_other_noise_for_another_image_or_seed() -> None:
    (_, first), (_, second), _ = ClassSamples(3).draw(_exact(), LIKE, 1.0).rows
    (_, again), *_ = ClassSamples(2).draw(_exact(), LIKE, 1.0).rows
    (_, other), *_ = ClassSamples(3, seed=1).draw(_exact(), LIKE, 1.0).rows
    assert torch.equal(again, first[:2])
    assert len({*first.flatten().tolist(), *other.flatten().tolist(), *(second.flatten() - 4).tolist()}) == 9


class _Drawing(nn.Module):
    """A judge that draws from the global random state."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return torch.rand(len(images))


def test_training_does_not_feel_it(tmp_path: Path) -> None:
    judge = _Drawing()
    with_it, _ = _fit(tmp_path / "a", ClassSamples(judge=judge, judged=20), logger=CSVLogger(tmp_path))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    without, _ = _fit(tmp_path / "b", ClassSamples(per_class=0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(with_it.state_dict(), without.state_dict(), rtol=0, atol=0)
    assert not any("judge" in name for name in with_it.state_dict())


def test_picture_and_share_are_logged(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def judge(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape))
        return torch.ones(len(images))

    _, trainer = _fit(tmp_path, ClassSamples(judge=judge, judged=20, every_n_epochs=2), logger=CSVLogger(tmp_path))
    assert trainer.callback_metrics["val/null_known_share"] == 1
    assert seen == [(16, 1, 4, 4), (4, 1, 4, 4)], "after the second epoch alone, and not at the sanity check"
    (picture,) = tmp_path.rglob("val_samples.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_nothing_is_drawn_without_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassSamples, "_images", lambda *args: pytest.fail("drawn"))
    _, trainer = _fit(tmp_path, ClassSamples())
    assert "val/null_known_share" not in trainer.callback_metrics


def test_classifier_judges_by_its_checkpoint(tmp_path: Path) -> None:
    network, path = MLP(16, [], 3), tmp_path / "all.ckpt"
    trained = Classifier(network, 3, optimizer=partial(torch.optim.SGD, lr=0.0))
    trainer = toy_trainer(Parts(trained, [], toy_data()), tmp_path)
    trainer.strategy.connect(trained)
    trainer.save_checkpoint(path, weights_only=True)
    images = torch.randn(50, 1, 4, 4)
    judge = ClassifierJudge(MLP(16, [], 3), [0, 2], path)
    assert judge(images).tolist() == [label in (0, 2) for label in network(images).argmax(1).tolist()]
    assert 0 < int(judge(images).sum()) < 50
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt does not exist; train a classifier of all classes"):
        ClassifierJudge(network, [0], tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize("judge", [lambda images: images, lambda images: images.flatten() + 3])
def test_other_judgements_are_refused(judge: Any) -> None:
    with pytest.raises(ValueError, match="give one bool or probability for each"):
        ClassSamples(judge=judge, judged=5).draw(_exact(), LIKE, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_class": -1}, "per_class=-1 must be at least 0"),
        ({"judged": 0}, "judged=0 must be at least 1"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 must be at least 1"),
        ({"every_n_epochs": 0}, "every_n_epochs=0 must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassSamples(**arguments)


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_show_the_pixels_in_their_places(channels: int) -> None:
    rows = [("above", torch.rand(2, channels, 3, 2) * 2 - 1), ("below", torch.rand(2, channels, 3, 2) * 2 - 1)]
    axes = image_rows(rows, -1.0, 1.0).axes[0]
    shown = torch.as_tensor(axes.images[0].get_array().data).reshape(7, 5, channels)
    for line, (_, images) in enumerate(rows):
        for column, image in enumerate(images):
            found = shown[4 * line : 4 * line + 3, 3 * column : 3 * column + 2]
            torch.testing.assert_close(found, (image.movedim(0, -1) + 1) / 2)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["above", "below"]
