"""Toy runs of the data manipulation room."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import lit_methods
from lit_methods.data_manipulation import MaskedLMAugmenter, TextNetwork
from tests.entries.toys import (
    BATCH,
    CLASSES,
    EXAMPLES,
    FROM_TORCH,
    NONE_OF_OURS,
    Bad,
    Entry,
    Parts,
    ToyData,
    empty,
    nan,
    toy_network,
    toy_tensors,
)

VOCABULARY, TOKENS = 40, 9


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


_FROM_TORCH_INDEXED = tuple(replace(bad, data=_indexed(bad.data)) for bad in FROM_TORCH)


_BAD_TEXTS = (
    Bad("unknown word", lambda: ToyTexts(words=VOCABULARY + 9), (IndexError, "index out of range")),
    Bad("unknown label", lambda: ToyTexts(label=1), (IndexError, "Target 3 is out of bounds|index out of range")),
)


ENTRIES = (
    Entry(
        "DataWeighting",
        _data_weighting,
        configs=(
            "data_manipulation/digits_noise.yaml",
            "data_manipulation/digits_imbalance.yaml",
            "data_manipulation/cifar10_imbalance.yaml",
            "data_manipulation/cifar10_low.yaml",
            "compositions/weighted_attention.yaml",
        ),
        reload=lambda: {"network": toy_network()},
        bad=(
            *_FROM_TORCH_INDEXED,
            Bad("no index", lambda: ToyData(*toy_tensors()), (ValueError, "has no index of its examples")),
            Bad("empty loader", _indexed(empty), warning="across ranks is zero"),
            Bad("NaN input", _indexed(nan(0)), warning="gain that is not finite", finite=False),
        ),
        skips={"resumes_mid_epoch": NONE_OF_OURS},
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
        skips={"resumes_mid_epoch": NONE_OF_OURS},
    ),
    Entry(
        "ConditionalMaskedLM",
        _conditional_masked_lm,
        configs=("data_manipulation/docstrings_pretrain.yaml",),
        reload=lambda: {"augmenter": _augmenter()},
        bad=(_BAD_TEXTS[0],),
        skips={
            "resumes_mid_epoch": NONE_OF_OURS,
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
            "resumes_mid_epoch": NONE_OF_OURS,
            "ddp_equal": "each process draws variants of its own",
        },
    ),
)
