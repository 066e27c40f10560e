"""Every public LightningModule, callback and datamodule with a toy factory; `tests/battery` runs them all.

A new method joins by one `Entry`: `tests/test_matrix.py` fails until it has one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from lit_methods.data_manipulation import MaskedLMAugmenter, TextNetwork

EXAMPLES, BATCH, FEATURES, CLASSES = 48, 8, 4, 3
VOCABULARY, TOKENS = 40, 9


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


def _data_weighting(folder: Path, processes: int = 1) -> Parts:
    callback = lit_methods.DataWeighting(criterion="loss", warmup_epochs=0)
    data = ToyData(*toy_tensors(), torch.arange(EXAMPLES), batch_size=BATCH // processes)
    return Parts(lit_methods.Classifier(toy_network(), CLASSES), [callback], data)


def _indexed(make: Callable[[], ToyData]) -> Callable[[], ToyData]:
    def data() -> ToyData:
        tensors = make().dataset.tensors
        return ToyData(*tensors, torch.arange(len(tensors[0])))

    return data


class ToyTexts(LightningDataModule):
    """Tokens `[CLS] ... [SEP]`, their mask and a label, in dicts, for all four stages."""

    def __init__(self, processes: int = 1, words: int = VOCABULARY, label: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        labels = torch.arange(EXAMPLES) % CLASSES
        ids = torch.randint(5, words, (EXAMPLES, TOKENS), generator=generator)
        ids[:, 0], ids[:, -1] = 2, 3
        ids[:, 1] = 5 + labels  # the label is to be seen
        rows = zip(ids, labels + label, strict=True)
        mask = torch.ones(TOKENS, dtype=torch.int64)
        self.rows: Any = [{"input_ids": x, "attention_mask": mask, "label": y} for x, y in rows]
        self.batch_size = BATCH // processes

    def train_dataloader(self) -> DataLoader:
        if self.trainer is None or self.trainer.world_size == 1:
            return DataLoader(self.rows, batch_size=self.batch_size)
        return DataLoader(self.rows, batch_size=self.batch_size, sampler=DistributedSampler(self.rows, shuffle=False))

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


def _text_network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return TextNetwork(CLASSES, vocab_size=VOCABULARY, hidden_size=32, num_layers=1, dropout=0.0)


def _augmenter() -> MaskedLMAugmenter:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return MaskedLMAugmenter(CLASSES, vocab_size=VOCABULARY, hidden_size=32, num_layers=1).eval()


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=3e-3)


def _text_classifier(folder: Path, processes: int = 1) -> Parts:
    module = lit_methods.TextClassifier(_text_network(), CLASSES, optimizer=_adam)
    return Parts(module, [], ToyTexts(processes))


def _conditional_masked_lm(folder: Path, processes: int = 1) -> Parts:
    module = lit_methods.ConditionalMaskedLM(_still(_augmenter()), optimizer=_adam)
    return Parts(module, [], ToyTexts(processes))


def _still(model: torch.nn.Module) -> Any:
    """Without dropout: Lightning's checkpoints hold no random state."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    return model.train()


def _learned_augmentation(folder: Path, processes: int = 1) -> Parts:
    callback = lit_methods.LearnedAugmentation(_augmenter(), warmup_epochs=0, num_variants=2)
    return _text_classifier(folder, processes)._replace(callbacks=[callback])


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
_FROM_TORCH_INDEXED = tuple(replace(bad, data=_indexed(bad.data)) for bad in _FROM_TORCH)
_BAD_TEXTS = (
    Bad("unknown word", lambda: ToyTexts(words=VOCABULARY + 9), (IndexError, "index out of range")),
    Bad("unknown label", lambda: ToyTexts(label=1), (IndexError, "Target 3 is out of bounds|index out of range")),
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
        "DataWeighting",
        _data_weighting,
        configs=(
            "data_manipulation/digits_noise.yaml",
            "data_manipulation/digits_imbalance.yaml",
            "data_manipulation/cifar10_imbalance.yaml",
            "data_manipulation/cifar10_low.yaml",
        ),
        reload=lambda: {"network": toy_network()},
        bad=(
            *_FROM_TORCH_INDEXED,
            Bad("no index", lambda: ToyData(*toy_tensors()), (ValueError, "has no index of its examples")),
            Bad("empty loader", _indexed(_empty), warning="across ranks is zero"),
            Bad("NaN input", _indexed(_nan(0)), warning="gain that is not finite", finite=False),
        ),
        skips={"resumes_mid_epoch": _NONE_OF_OURS},
    ),
    Entry(
        "TextClassifier",
        _text_classifier,
        configs=(
            "data_manipulation/sst2_imbalance.yaml",
            "data_manipulation/sst5_low.yaml",
            "data_manipulation/trec_low.yaml",
        ),
        reload=lambda: {"network": _text_network()},
        bad=_BAD_TEXTS,
        skips={"resumes_mid_epoch": _NONE_OF_OURS},
    ),
    Entry(
        "ConditionalMaskedLM",
        _conditional_masked_lm,
        configs=("data_manipulation/docstrings_pretrain.yaml",),
        reload=lambda: {"augmenter": _augmenter()},
        bad=(_BAD_TEXTS[0],),
        skips={
            "resumes_mid_epoch": _NONE_OF_OURS,
            "ddp_equal": "each process draws masks of its own",
        },
    ),
    Entry(
        "LearnedAugmentation",
        _learned_augmentation,
        configs=("data_manipulation/docstrings_augment.yaml",),
        reload=lambda: {"network": _text_network()},
        bad=(
            *_BAD_TEXTS,
            Bad("no texts", lambda: ToyData(*toy_tensors()), (ValueError, "is no dict with input_ids, attention_mask")),
        ),
        skips={
            "resumes_mid_epoch": _NONE_OF_OURS,
            "ddp_equal": "each process draws variants of its own",
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


def _hub_text(folder: Path) -> LightningDataModule:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for split in ("train", "test"):
        rows = {"text": [f"{split} " * (1 + i % 3) for i in range(16)], "label": [0, 1] * 8}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-0.parquet")
    return lit_methods.HubTextDataModule(
        data_dir=folder, cache_dir=folder / "cache", batch_size=BATCH, val_fraction=0.25
    )


DATAMODULES: dict[str, Callable[[Path], LightningDataModule]] = {
    "DigitsDataModule": lambda folder: lit_methods.DigitsDataModule(batch_size=BATCH),
    "DocstringDataModule": lambda folder: lit_methods.DocstringDataModule(20, batch_size=BATCH),
    "FashionMNISTDataModule": _fashion_mnist,
    "HubImageDataModule": _hub_images,
    "HubTextDataModule": _hub_text,
}


def entry(name: str) -> Entry:
    """The entry of a public name."""
    return next(entry for entry in ENTRIES if entry.name == name)
