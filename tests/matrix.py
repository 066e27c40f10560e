"""Every public LightningModule, callback and datamodule with a toy factory; `tests/battery` runs them all.

A new method joins by one `Entry`: `tests/test_matrix.py` fails until it has one.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import lit_methods
from lit_methods.backbones import MLP
from lit_methods.semi_supervised import FixMatch, FrozenRelevance, PULoss, RelevanceDiscriminator, Transformation
from tests.semi_supervised.toys import (
    tiny_backbone,
    tiny_classifier,
    tiny_diffusion,
    tiny_discriminator,
    tiny_unet,
    toy_data,
    toy_images,
)

EXAMPLES, BATCH, FEATURES, CLASSES = 48, 8, 4, 3
_FRESH = itertools.count()


class Parts(NamedTuple):
    """One run, every object new; the optimizer steps of an epoch are `EXAMPLES / BATCH`."""

    module: LightningModule
    callbacks: list[Callback]
    data: LightningDataModule
    trainer: dict[str, Any] = {}  # noqa: RUF012  never written to


class ToyData(LightningDataModule):
    """The same tensors for all four stages, in their order unless `shuffle` is set, shared out under DDP."""

    def __init__(self, *tensors: Tensor, batch_size: int = BATCH, shuffle: bool = False) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.shuffle = TensorDataset(*tensors), batch_size, shuffle

    def train_dataloader(self) -> DataLoader:
        if self.shuffle or self.trainer is None or self.trainer.world_size == 1:
            return DataLoader(self.dataset, batch_size=self.batch_size, shuffle=self.shuffle)
        sampler = DistributedSampler(self.dataset, shuffle=False)  # Lightning's own would shuffle
        return DataLoader(self.dataset, batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


@dataclass(frozen=True)
class Bad:
    """Bad data and what then happens.

    Attributes:
        what: Name of the case.
        data: Makes the data.
        refusal: Type and message of the error, where `fit` refuses.
        warning: Message of the warning, where `fit` only warns.
        finite: Whether the weights are finite after the fit; None where no step is taken.
    """

    what: str
    data: Callable[[], LightningDataModule]
    refusal: tuple[type[Exception], str] | None = None
    warning: str | None = None
    finite: bool | None = None


@dataclass(frozen=True)
class Entry:
    """One public name, the toy run that shows it, and what theory says of it.

    Attributes:
        name: The public name.
        make: Takes a folder of the test's own and the number of processes that share a global batch; two calls
            return equal runs.
        configs: Bundled configs that show it.
        reload: Arguments that `load_from_checkpoint` needs beside the file.
        bad: Bad inputs with their outcome.
        skips: What theory or Lightning rules out, each with the reason: a subset of `PROMISES`.
    """

    name: str
    make: Callable[[Path, int], Parts]
    configs: tuple[str, ...] = ()
    reload: Callable[[], dict[str, Any]] = dict
    bad: tuple[Bad, ...] = ()
    skips: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.skips) - PROMISES:
            raise ValueError(f"skips={sorted(unknown)} of {self.name} are none of {sorted(PROMISES)}.")


PROMISES = frozenset({"validates", "tests", "predicts", "bf16", "accumulates", "resumes_mid_epoch", "ddp_equal"})


def toy_tensors() -> tuple[Tensor, Tensor]:
    """Inputs `(EXAMPLES, FEATURES)` and the labels that a linear rule gives them."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(EXAMPLES, FEATURES, generator=generator)
    return inputs, (inputs @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(dim=1)


def toy_network() -> MLP:
    """The same small network in each call."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return MLP(FEATURES, [6], CLASSES)


def _classifier(folder: Path, processes: int = 1) -> Parts:
    data = ToyData(*toy_tensors(), batch_size=BATCH // processes)
    return Parts(lit_methods.Classifier(toy_network(), CLASSES), [], data)


def _banded_square_root_noise(folder: Path, processes: int = 1) -> Parts:
    callback = lit_methods.BandedSquareRootNoise(epsilon=8.0, bandwidth=3, unsafe_seed=5)
    data = ToyData(*toy_tensors(), batch_size=BATCH // processes, shuffle=True)  # it fixes the order itself
    trainer = {"use_distributed_sampler": False} if processes > 1 else {}
    return Parts(lit_methods.Classifier(toy_network(), CLASSES), [callback], data, trainer)


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


def _narrow() -> ToyData:
    inputs, labels = toy_tensors()
    return ToyData(inputs[:, 1:], labels)


def _unknown_label() -> ToyData:
    inputs, labels = toy_tensors()
    return ToyData(inputs, labels + 1)


def _empty() -> ToyData:
    inputs, labels = toy_tensors()
    return ToyData(inputs[:0], labels[:0])


def _nan(*rows: int) -> Callable[[], ToyData]:
    def data() -> ToyData:
        inputs, labels = toy_tensors()
        return ToyData(inputs.index_fill(0, torch.tensor(rows), torch.nan), labels)

    return data


_FROM_TORCH = (
    Bad("narrow inputs", _narrow, (RuntimeError, r"shapes cannot be multiplied \(8x3 and 4x6\)")),
    Bad("unknown label", _unknown_label, (IndexError, "Target 3 is out of bounds")),
)
_OPEN_SET = (
    Bad("labels alone", lambda: ToyData(*toy_images()[:2]), (TypeError, "training needs 'labeled' and 'unlabeled'")),
)
_UNKNOWN_CLASS = Bad(
    "label of an unknown class",
    lambda: toy_data(labels=torch.full((EXAMPLES,), 2)),
    (ValueError, "has labels 2 to 2, but num_classes=2 allows 0 to 1"),
)
_NONE_OF_OURS = "Lightning resumes in mid-epoch only with a stateful loader; the plain one starts its epoch again"

ENTRIES: tuple[Entry, ...] = (
    Entry(
        "Classifier",
        _classifier,
        reload=lambda: {"network": toy_network()},
        bad=(
            *_FROM_TORCH,
            Bad("empty loader", _empty, warning="across ranks is zero"),
            Bad("NaN input", _nan(0), finite=False),
        ),
        skips={"resumes_mid_epoch": _NONE_OF_OURS},
    ),
    Entry(
        "BandedSquareRootNoise",
        _banded_square_root_noise,
        configs=(
            "differential_privacy/digits.yaml",
            "differential_privacy/fashion_mnist.yaml",
            "differential_privacy/cifar10_bsr.yaml",
        ),
        reload=lambda: {"network": toy_network()},
        bad=(
            *_FROM_TORCH,
            Bad("empty loader", _empty, (ValueError, "num_examples must be at least 1, but is 0")),
            Bad("one NaN input", _nan(0), finite=True),
            Bad("every other input NaN", _nan(*range(0, EXAMPLES, 2)), finite=True),
        ),
    ),
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
            "resumes_mid_epoch": _NONE_OF_OURS,
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
        ),
        reload=lambda: {
            "unet": tiny_unet(),
            "relevance": FrozenRelevance(tiny_discriminator(), prior=0.5),
            "transformation": Transformation(num_inference_steps=2),
        },
        bad=(*_OPEN_SET, _UNKNOWN_CLASS),
        skips={"resumes_mid_epoch": _NONE_OF_OURS},
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
        ),
        reload=lambda: {"backbone": tiny_backbone(), "strategy": FixMatch(threshold=0.5)},
        bad=(*_OPEN_SET, _UNKNOWN_CLASS),
        skips={"resumes_mid_epoch": _NONE_OF_OURS},
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
            "resumes_mid_epoch": _NONE_OF_OURS,
            "ddp_equal": "it has no part in training",
            "predicts": "the battery predicts by other weights into one folder, which it refuses; see its tests",
        },
    ),
)


def _fashion_mnist(folder: Path) -> LightningDataModule:
    for prefix, count in (("train", 40), ("t10k", 20)):
        for name, values in (("images-idx3", np.zeros((count, 28, 28))), ("labels-idx1", np.arange(count) % 10)):
            header = np.array([0x800 + values.ndim, *values.shape], ">u4").tobytes()
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + values.astype(np.uint8).tobytes())
    return lit_methods.FashionMNISTDataModule(folder, batch_size=BATCH, val_fraction=0.25)


def _hub_images(folder: Path) -> LightningDataModule:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for split in ("train", "test"):
        rows = {"image": [Image.new("RGB", (5, 5), (i, i, i)) for i in range(16)], "label": [0, 1] * 8}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-0.parquet")
    return lit_methods.HubImageDataModule(
        data_dir=folder, cache_dir=folder / "cache", batch_size=BATCH, val_fraction=0.25
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


DATAMODULES: dict[str, Callable[[Path], LightningDataModule]] = {
    "DigitsDataModule": lambda folder: lit_methods.DigitsDataModule(batch_size=BATCH),
    "FashionMNISTDataModule": _fashion_mnist,
    "HubImageDataModule": _hub_images,
    "ImageFolderDataModule": _image_folder,
    "OpenSetDataModule": _open_set,
}
OWN_BATCHES = {"OpenSetDataModule": "its batches are not (images, labels); tests/semi_supervised feeds them to modules"}


def entry(name: str) -> Entry:
    """The entry of a public name."""
    return next(entry for entry in ENTRIES if entry.name == name)
