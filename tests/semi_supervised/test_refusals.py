"""Bad input ends in one sentence, which is also the last line of the command line."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, TensorDataset

from lit_methods.bundled import find_configs
from lit_methods.callbacks import SyntheticImageWriter
from lit_methods.runner import run
from lit_methods.semi_supervised import DiscriminatorWeightedDiffusion, FixMatch, PULoss, RelevanceDiscriminator
from lit_methods.semi_supervised.latents import check_image_shape
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Parts
from tests.semi_supervised.toys import (
    OpenSetToy,
    tiny_classifier,
    tiny_diffusion,
    tiny_discriminator,
    tiny_unet,
    toy_data,
    toy_images,
)

UNTRAINED = "The diffusion is untrained and would turn the images into noise; pass the checkpoint of a fit"
UNIFORM = "--model.relevance=lit_methods.semi_supervised.UniformRelevance"
SIX = ["--model.num_classes=6", "--model.unet.init_args.num_class_embeds=7", "--data.known_classes=[0,1,2,3,4,5]"]


def _arguments(subcommand: str, stage: str, *flags: str) -> list[str]:
    quiet = ["-c", "trainer/cpu.yaml", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    return find_configs([subcommand, "-c", f"semi_supervised/digits_{stage}.yaml", *quiet, *flags])


@pytest.mark.parametrize(
    ("stage", "flags", "sentence"),
    [
        ("discriminator", ["--model.loss.init_args.prior=1.5"], "prior=1.5 must lie strictly between"),
        ("diffusion", ["--model.relevance.init_args.prior=0"], "prior=0.0 must lie strictly between"),
        ("diffusion", ["--model.transformation.init_args.strength=1.5"], "strength=1.5 must lie in [0, 1]"),
        ("diffusion", ["--model.transformation.init_args.strength=-0.1"], "strength=-0.1 must lie in"),
        ("diffusion", [UNIFORM, "--data.known_classes=[0,1,2,3,4,5]"], "val batch has labels 0 to 5, but"),
        ("supervised", ["--data.synthetic_dir=null", "--data.unlabeled_classes=[]"], "unlabeled_classes=["),
        ("diffusion", [UNIFORM, "--model.unet.init_args.in_channels=3"], "images is (32, 1, 8, 8), but"),
    ],
)
def test_command_line_ends_with_the_sentence(
    stage: str, flags: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        run(_arguments("fit", stage, *flags))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_other_errors_of_the_parser_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = ["--trainer.callbacks=SyntheticImageWriter", "--trainer.callbacks.output_dir=out"]
    with pytest.raises(ValueError, match=r"^value_range=\(1\.0, 1\.0\) must rise"):
        run(_arguments("fit", "discriminator", *writer, "--trainer.callbacks.value_range=[1,1]"))


def test_predict_of_the_command_line_needs_a_fitting_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MisconfigurationException, match=UNTRAINED):
        run(_arguments("predict", "diffusion", UNIFORM))
    run(_arguments("fit", "diffusion", UNIFORM, "--data.steps_per_epoch=1", "--trainer.limit_val_batches=0"))
    checkpoint = "--ckpt_path=runs/semi_supervised/digits_diffusion/last.ckpt"
    with pytest.raises(ValueError, match="The checkpoint is of num_classes=5, this model has num_classes=6"):
        run(_arguments("predict", "diffusion", UNIFORM, checkpoint, *SIX))
    found = [path.name for path in (tmp_path / "runs" / "semi_supervised").iterdir()]
    assert found == ["digits_diffusion"], "a refused prediction leaves no folder that would refuse the right one"


def _predict(module: LightningModule, folder: Path, **trainer: Any) -> Any:
    data = toy_data()
    return toy_trainer(Parts(module, [], data), folder, **trainer).predict(module, datamodule=data)


def test_untrained_diffusion_predicts_nothing_but_a_trained_one_does(tmp_path: Path) -> None:
    module = tiny_diffusion(pretrained=False)
    writer = SyntheticImageWriter(tmp_path / "out")
    with pytest.raises(MisconfigurationException, match=UNTRAINED):
        toy_trainer(Parts(module, [writer], toy_data()), tmp_path).predict(module, datamodule=toy_data())
    assert list(tmp_path.iterdir()) == []
    assert _predict(module, tmp_path, fast_dev_run=True)

    trainer = toy_trainer(Parts(module, [], toy_data()), tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=toy_data())
    assert _predict(module, tmp_path)
    trainer.save_checkpoint(tmp_path / "trained.ckpt")
    reloaded = DiscriminatorWeightedDiffusion.load_from_checkpoint(
        tmp_path / "trained.ckpt", unet=tiny_unet(), relevance=tiny_diffusion().relevance
    )
    assert _predict(reloaded, tmp_path)
    other = tiny_diffusion(pretrained=False)
    other.load_state_dict(module.state_dict())
    assert _predict(other, tmp_path)
    assert _predict(tiny_diffusion(pretrained=True), tmp_path)


def _fit(module: LightningModule, data: Any, folder: Path, **trainer: Any) -> None:
    settings = {"max_epochs": 1, "limit_val_batches": 0} | trainer
    toy_trainer(Parts(module, [], data), folder, **settings).fit(module, datamodule=data)


def _discriminator() -> RelevanceDiscriminator:
    return RelevanceDiscriminator(tiny_discriminator(), PULoss(0.5))


MODULES = {
    "diffusion": tiny_diffusion,
    "discriminator": _discriminator,
    "classifier": lambda: tiny_classifier(FixMatch()),
}


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")  # Lightning's own word
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_no_unlabelled_data(make: Callable[[], LightningModule], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch\['unlabeled'\] is empty; there must be unlabeled images to train on"):
        _fit(make(), toy_data(pool=torch.zeros(0, 1, 4, 4)), tmp_path)


@pytest.mark.parametrize("make", [MODULES["diffusion"], MODULES["discriminator"]])
def test_unlabelled_images_of_another_size_or_mode(make: Callable[[], LightningModule], tmp_path: Path) -> None:
    for shape in ((1, 8, 8), (3, 4, 4)):
        with pytest.raises(ValueError, match=r"has images \(1, 4, 4\), batch\['unlabeled'\] .*to one size and mode"):
            _fit(make(), toy_data(pool=torch.zeros(96, *shape)), tmp_path)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 4)])
def test_images_of_another_size_or_mode_than_the_model(shape: tuple[int, int, int], tmp_path: Path) -> None:
    images = {"images": torch.zeros(48, *shape), "pool": torch.zeros(96, *shape)}
    refusal = pytest.raises(ValueError, match=r"but the model takes \(B, 1, 4, 4\); resize or convert them")
    with refusal:
        _fit(tiny_diffusion(), toy_data(**images), tmp_path)
    with refusal:
        _fit(tiny_diffusion(), toy_data(images=images["images"]), tmp_path, limit_val_batches=1)
    with refusal:
        module, data = tiny_diffusion(), toy_data(**images)
        toy_trainer(Parts(module, [], data), tmp_path).predict(module, datamodule=data)


def test_size_is_that_of_the_latents() -> None:
    wide = SimpleNamespace(config=SimpleNamespace(sample_size=(4, 6), in_channels=3))
    free = SimpleNamespace(config=SimpleNamespace(sample_size=None, in_channels=1))
    halving = SimpleNamespace(config=SimpleNamespace(block_out_channels=(8, 8), in_channels=1, sample_size=512))
    check_image_shape(wide, halving, torch.Size((2, 1, 8, 12)))
    check_image_shape(free, None, torch.Size((2, 1, 5, 7)))
    check_image_shape(torch.nn.Identity(), None, torch.Size((2, 5)))
    for unet, vae, shape, wanted in (
        (wide, halving, (2, 1, 8, 8), "1, 8, 12"),
        (wide, halving, (2, 3, 8, 12), "1, 8, 12"),
        (wide, None, (2, 3, 8, 12), "3, 4, 6"),
        (free, None, (2, 3, 4, 4), "1, any, any"),
        (wide, None, (3, 4, 6), "3, 4, 6"),
    ):
        with pytest.raises(ValueError, match=rf"the model takes \(B, {wanted}\)"):
            check_image_shape(unet, vae, torch.Size(shape))


@pytest.mark.parametrize("make", [MODULES["diffusion"], MODULES["classifier"]])
def test_validation_labels_of_unknown_classes(make: Callable[[], LightningModule], tmp_path: Path) -> None:
    data = toy_data(labels=torch.full((48,), 7))
    with pytest.raises(ValueError, match="val batch has labels 7 to 7, but num_classes=2 allows 0 to 1"):
        _fit(make(), data, tmp_path, limit_val_batches=1)


def test_synthetic_labels_of_unknown_classes(tmp_path: Path) -> None:
    data = toy_data(synthetic=True)
    data.second = TensorDataset(data.second.tensors[0], torch.full((96,), 4))
    with pytest.raises(ValueError, match=r"batch\['synthetic'\] has labels 4 to 4, but num_classes=2 allows 0 to 1"):
        _fit(tiny_classifier(FixMatch()), data, tmp_path)


class _Recording(OpenSetToy):
    """A batch of eight from three labels, repeated."""

    def train_dataloader(self) -> CombinedLoader:
        again = torch.arange(24) % len(self.labeled)
        labeled = TensorDataset(*(tensor[again] for tensor in self.labeled.tensors))
        return CombinedLoader(
            {"labeled": DataLoader(labeled, batch_size=8), "unlabeled": DataLoader(self.pool, batch_size=32)}
        )


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_fewer_labels_than_a_batch_are_repeated(make: Callable[[], LightningModule], tmp_path: Path) -> None:
    images, labels, pool = toy_images()
    module = make()
    before = [p.clone() for p in module.parameters()]
    _fit(module, _Recording(images[:3], labels[:3], pool), tmp_path)
    assert any(not torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    assert all(torch.isfinite(p).all() for p in module.parameters())
