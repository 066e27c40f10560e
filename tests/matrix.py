"""Every public LightningModule, callback and datamodule with a toy factory; `tests/battery` runs them all.

A new method joins by one `Entry`: `tests/test_matrix.py` fails until it has one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.utilities import CombinedLoader
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import lit_methods
from lit_methods.backbones import MLP
from lit_methods.datamodules import RetrievalDataModule
from lit_methods.datamodules.regions import ArrayRegions
from lit_methods.datamodules.retrieval_sets import CaptionDataset, RegionDataset, RetrievalSet, as_is
from lit_methods.image_text import KnowledgeBase, SharedLinear

EXAMPLES, BATCH, FEATURES, CLASSES = 48, 8, 4, 3


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


class ToyRetrieval(RetrievalDataModule):
    """As many images of three regions as captions of two words, in their order also in training."""

    def __init__(
        self, caption: str = "w{} w{}", features: int = FEATURES, bad: float = 0.0, batch_size: int = BATCH
    ) -> None:
        super().__init__(batch_size)
        self.caption, self.features, self.bad = caption, features, bad

    def read(self, split: str) -> RetrievalSet:
        regions = torch.rand(EXAMPLES, 3, self.features, generator=torch.Generator().manual_seed(4))
        regions[0, 0, 0] += self.bad
        captions = [self.caption.format(i % 5, i // 5 % 5) for i in range(EXAMPLES)]
        return RetrievalSet(ArrayRegions(regions.numpy()), captions, torch.arange(EXAMPLES))

    def train_dataloader(self) -> CombinedLoader:
        found = self.sets["train"]
        parts = {"images": RegionDataset(found.regions), "captions": CaptionDataset(found.captions)}
        return CombinedLoader(
            {k: DataLoader(v, batch_size=self.batch_size, collate_fn=as_is) for k, v in parts.items()}
        )


def toy_knowledge() -> KnowledgeBase:
    """Five words."""
    return KnowledgeBase(
        [f"w{i}" for i in range(5)], torch.rand(5, FEATURES, generator=torch.Generator().manual_seed(5))
    )


def _mack(folder: Path, processes: int = 1) -> Parts:
    adam = partial(torch.optim.Adam, lr=1e-2)
    module = lit_methods.MACK(toy_knowledge(), transform=SharedLinear(FEATURES), optimizer=adam)
    return Parts(module, [], ToyRetrieval(batch_size=BATCH // processes))


class ToyMatcher(LightningModule):
    """A linear map between pairs of vectors, which gives the scores of all pairs of a set."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.layer = nn.Linear(FEATURES, FEATURES)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        self.log("train/loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.seen.append((self.layer(batch[0]).float(), batch[1]))

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        self.seen = []

    on_test_epoch_start = on_validation_epoch_start

    def scores(self) -> Tensor:
        images, captions = (torch.cat(part) for part in zip(*self.seen, strict=True))
        return images @ captions.T

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.layer(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _pairs(count: int = EXAMPLES, batch_size: int = BATCH) -> ToyData:
    inputs, _ = toy_tensors()
    return ToyData(inputs[:count], inputs[:count].flip(1), batch_size=batch_size)


def _knowledge_rerank(folder: Path, processes: int = 1) -> Parts:
    callback = lit_methods.KnowledgeRerank(knowledge=toy_knowledge(), data=ToyRetrieval(), alpha=(0.1, 0.2))
    return Parts(ToyMatcher(), [callback], _pairs(batch_size=BATCH // processes))


_FROM_TORCH = (
    Bad("narrow inputs", _narrow, (RuntimeError, r"shapes cannot be multiplied \(8x3 and 4x6\)")),
    Bad("unknown label", _unknown_label, (IndexError, "Target 3 is out of bounds")),
)
_NONE_OF_OURS = "Lightning resumes in mid-epoch only with a stateful loader; the plain one starts its epoch again"

ENTRIES = (
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
        "MACK",
        _mack,
        configs=(
            "image_text/digit_scenes.yaml",
            "image_text/flickr30k_precomp.yaml",
            "image_text/coco_precomp_1k_5fold.yaml",
            "image_text/coco_precomp_5k.yaml",
        ),
        reload=lambda: {"transform": SharedLinear(FEATURES)},
        bad=(
            Bad("narrow regions", lambda: ToyRetrieval(features=3), (ValueError, "regions have 3 features and the kn")),
            Bad("unknown words", lambda: ToyRetrieval("foo"), (ValueError, "None of the 8 captions of batch 0 has")),
            Bad("NaN feature", lambda: ToyRetrieval(bad=torch.nan), (ValueError, "Regions of batch 0 hold NaN")),
        ),
        skips={
            "resumes_mid_epoch": _NONE_OF_OURS,
            "ddp_equal": "the cycle loss compares the words and regions of one batch, which two processes halve",
        },
    ),
    Entry(
        "KnowledgeRerank",
        _knowledge_rerank,
        configs=("image_text/rerank_clip_flickr30k.yaml",),
        skips={
            "resumes_mid_epoch": _NONE_OF_OURS,
            "ddp_equal": "the toy matcher gives the scores of its own process; gathering them is the module's part",
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


def _image_text(folder: Path) -> LightningDataModule:
    for split in ("train", "dev", "test"):
        np.save(folder / f"{split}_ims.npy", np.random.default_rng(0).random((8, 3, 4)).astype(np.float32))
        (folder / f"{split}_caps.txt").write_text("w0 w1\n" * 16)
    return lit_methods.ImageTextDataModule(folder, captions_per_image=2, batch_size=BATCH)


DATAMODULES: dict[str, Callable[[Path], LightningDataModule]] = {
    "DigitScenesDataModule": lambda folder: lit_methods.DigitScenesDataModule(8, 4, 4, 200, batch_size=BATCH),
    "DigitsDataModule": lambda folder: lit_methods.DigitsDataModule(batch_size=BATCH),
    "FashionMNISTDataModule": _fashion_mnist,
    "HubImageDataModule": _hub_images,
    "ImageTextDataModule": _image_text,
}


def entry(name: str) -> Entry:
    """The entry of a public name."""
    return next(entry for entry in ENTRIES if entry.name == name)
