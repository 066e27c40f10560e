"""Toy runs of the semi supervised room."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image

import lit_methods
from lit_methods.semi_supervised import FixMatch, FrozenRelevance, PULoss, RelevanceDiscriminator, Transformation
from tests.entries.toys import (
    BATCH,
    EXAMPLES,
    NONE_OF_OURS,
    Bad,
    Entry,
    Parts,
    ToyData,
)
from tests.semi_supervised.toys import (
    tiny_backbone,
    tiny_classifier,
    tiny_diffusion,
    tiny_discriminator,
    tiny_unet,
    toy_data,
    toy_images,
)

_FRESH = itertools.count()


def _relevance_discriminator(folder: Path, processes: int = 1) -> Parts:
    module = RelevanceDiscriminator(
        tiny_discriminator(), PULoss(0.5), optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    )
    return Parts(module, [], toy_data(BATCH // processes))


def _diffusion(folder: Path, processes: int = 1) -> Parts:
    return Parts(tiny_diffusion(), [], toy_data(BATCH // processes))


def _semi_supervised_classifier(folder: Path, processes: int = 1) -> Parts:
    return Parts(tiny_classifier(FixMatch(threshold=0.5)), [], toy_data(BATCH // processes))


def _synthetic_image_writer(folder: Path, processes: int = 1) -> Parts:
    writer = lit_methods.SyntheticImageWriter(folder / str(next(_FRESH)), keep_predictions=True)
    return Parts(tiny_diffusion(), [writer], toy_data(BATCH // processes))


_OPEN_SET = (
    Bad("labels alone", lambda: ToyData(*toy_images()[:2]), (TypeError, "training needs 'labeled' and 'unlabeled'")),
)


_UNKNOWN_CLASS = Bad(
    "label of an unknown class",
    lambda: toy_data(labels=torch.full((EXAMPLES,), 2)),
    (ValueError, "has labels 2 to 2, but num_classes=2 allows 0 to 1"),
)


def _image_folder(folder: Path) -> LightningDataModule:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            for i in range(8):
                Image.new("L", (5, 5), i).save(folder / split / label / f"{i}.png")
    return lit_methods.ImageFolderDataModule(folder, batch_size=BATCH, val_fraction=0.25)


def _open_set(folder: Path) -> LightningDataModule:
    return lit_methods.OpenSetDataModule(
        lit_methods.DigitsDataModule(), range(5), labels_per_class=5, val_per_class=5, batch_size=BATCH
    )


OWN_BATCHES = {"OpenSetDataModule": "its batches are not (images, labels); tests/semi_supervised feeds them to modules"}


ENTRIES = (
    Entry(
        "RelevanceDiscriminator",
        _relevance_discriminator,
        configs=(
            "semi_supervised/digits_discriminator.yaml",
            "semi_supervised/six_animal/discriminator.yaml",
            "semi_supervised/cifar10_100/discriminator.yaml",
            "semi_supervised/imagenet30/discriminator.yaml",
        ),
        reload=lambda: {"network": tiny_discriminator(), "loss": PULoss(0.5)},
        bad=_OPEN_SET,
        skips={
            "resumes_mid_epoch": NONE_OF_OURS,
            "ddp_equal": "the non-negative risk looks at the sign of a mean, which differs between shares of a batch",
        },
    ),
    Entry(
        "DiscriminatorWeightedDiffusion",
        _diffusion,
        configs=(
            "semi_supervised/digits_diffusion.yaml",
            "semi_supervised/six_animal/diffusion.yaml",
            "semi_supervised/cifar10_100/diffusion.yaml",
            "semi_supervised/imagenet30/diffusion.yaml",
            "semi_supervised/digits_diffusion_paper_parity.yaml",
            "semi_supervised/six_animal/diffusion_paper_parity.yaml",
            "semi_supervised/cifar10_100/diffusion_paper_parity.yaml",
            "semi_supervised/imagenet30/diffusion_paper_parity.yaml",
        ),
        reload=lambda: {
            "unet": tiny_unet(),
            "relevance": FrozenRelevance(tiny_discriminator(), prior=0.5),
            "transformation": Transformation(num_inference_steps=2),
        },
        bad=(*_OPEN_SET, _UNKNOWN_CLASS),
        skips={"resumes_mid_epoch": NONE_OF_OURS},
    ),
    Entry(
        "SemiSupervisedClassifier",
        _semi_supervised_classifier,
        configs=(
            "semi_supervised/digits_fixmatch.yaml",
            "semi_supervised/digits_supervised.yaml",
            "semi_supervised/six_animal/fixmatch.yaml",
            "semi_supervised/six_animal/supervised.yaml",
            "semi_supervised/cifar10_100/fixmatch.yaml",
            "semi_supervised/imagenet30/fixmatch.yaml",
            "semi_supervised/cifar10_100/supervised.yaml",
            "semi_supervised/imagenet30/supervised.yaml",
        ),
        reload=lambda: {"backbone": tiny_backbone(), "strategy": FixMatch(threshold=0.5)},
        bad=(*_OPEN_SET, _UNKNOWN_CLASS),
        skips={"resumes_mid_epoch": NONE_OF_OURS},
    ),
    Entry(
        "SyntheticImageWriter",
        _synthetic_image_writer,
        reload=lambda: {
            "unet": tiny_unet(),
            "relevance": FrozenRelevance(tiny_discriminator(), prior=0.5),
            "transformation": Transformation(num_inference_steps=2),
        },
        skips={
            "resumes_mid_epoch": NONE_OF_OURS,
            "ddp_equal": "it has no part in training",
            "predicts": "the battery predicts by other weights into one folder, which it refuses; see its tests",
        },
    ),
)


DATAMODULES: dict[str, Callable[[Path], LightningDataModule]] = {
    "ImageFolderDataModule": _image_folder,
    "OpenSetDataModule": _open_set,
}
