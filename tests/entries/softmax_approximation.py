"""Toy runs of the softmax approximation room."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

import lit_methods
from lit_methods.softmax_approximation.networks import TransformerEncoder, TransformerSeq2Seq
from tests.entries.toys import (
    BATCH,
    CLASSES,
    EXAMPLES,
    NONE_OF_OURS,
    Bad,
    Entry,
    Parts,
    ToyData,
    empty,
    nan,
    toy_tensors,
    unknown_label,
)


class ToyAttention(nn.Module):
    """Attends over the features as over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(inputs.unsqueeze(-1))).mean(1))


def toy_attention() -> ToyAttention:
    """The same small attention network in each call."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return ToyAttention()


def _softmax_approximation(folder: Path, processes: int = 1) -> Parts:
    callback = lit_methods.SoftmaxApproximation("log4", error_every_n_steps=2, max_error=1e-4)
    data = ToyData(*toy_tensors(), batch_size=BATCH // processes)
    return Parts(lit_methods.Classifier(toy_attention(), CLASSES), [callback], data)


class ToyTexts(ToyData):
    """Batches of named tensors in place of tuples."""

    def __init__(self, batch_size: int = BATCH, **tensors: Tensor) -> None:
        super().__init__(*tensors.values(), batch_size=batch_size)
        self.names = tuple(tensors)

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        return dict(zip(self.names, batch, strict=True))


def toy_texts(batch_size: int = BATCH, **more: Tensor) -> ToyTexts:
    """Texts of 4 to 6 tokens of 10, some padded on the right, labelled by their first token."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 10, (EXAMPLES, 6), generator=generator)
    mask = (torch.arange(6) < torch.randint(4, 7, (EXAMPLES, 1), generator=generator)).long()
    return ToyTexts(batch_size, input_ids=tokens * mask, attention_mask=mask, **(more or {"label": tokens[:, 0] % 3}))


def toy_encoder() -> nn.Module:
    """The same small encoder in each call."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return TransformerEncoder(10, 8, 1, 2, 16, dropout=0.0)


def toy_seq2seq() -> nn.Module:
    """The same small encoder-decoder in each call."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return TransformerSeq2Seq(10, 10, 8, 1, 2, 16, dropout=0.0, max_length=8)


def _attention_classifier(folder: Path, processes: int = 1) -> Parts:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = lit_methods.AttentionClassifier(toy_encoder(), CLASSES, dropout=0.0, optimizer=_sgd)
    return Parts(module, [], toy_texts(BATCH // processes))


def _attention_translator(folder: Path, processes: int = 1) -> Parts:
    tokens = toy_texts().dataset.tensors[0]
    start, end = (torch.full((EXAMPLES, 1), token) for token in (2, 3))
    targets = torch.cat([start, tokens.clamp_min(4).flip(1), end], 1)
    module = lit_methods.AttentionTranslator(toy_seq2seq(), max_length=8, optimizer=_sgd)
    return Parts(module, [], toy_texts(BATCH // processes, target_ids=targets))


def _sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1)


def _unknown_token() -> ToyTexts:
    data = toy_texts()
    tokens, mask, labels = data.dataset.tensors
    return ToyTexts(input_ids=tokens + 10, attention_mask=mask, label=labels)


def _translation(folder: Path) -> LightningDataModule:
    for split in ("train", "validation", "test"):
        rows = {"de": ["ein Hund läuft", "ein Haus"] * 8, "en": ["a dog runs", "a house"] * 8}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}-0.parquet")
    return lit_methods.TranslationDataModule(data_dir=folder, cache_dir=folder / "cache", batch_size=BATCH)


ENTRIES = (
    Entry(
        "SoftmaxApproximation",
        _softmax_approximation,
        configs=(
            "softmax_approximation/docstrings.yaml",
            "softmax_approximation/sst5.yaml",
            "softmax_approximation/trec.yaml",
            "softmax_approximation/multi30k_transformer.yaml",
            "compositions/private_attention.yaml",
        ),
        reload=lambda: {"network": toy_attention()},
        bad=(
            Bad("unknown label", unknown_label, (IndexError, "Target 3 is out of bounds")),
            Bad("empty loader", empty, warning="across ranks is zero"),
            Bad("NaN input", nan(0), finite=False),
        ),
        skips={"resumes_mid_epoch": NONE_OF_OURS},
    ),
    Entry(
        "AttentionClassifier",
        _attention_classifier,
        reload=lambda: {"encoder": toy_encoder()},
        bad=(Bad("unknown token", _unknown_token, (IndexError, "index out of range")),),
        skips={"resumes_mid_epoch": NONE_OF_OURS},
    ),
    Entry(
        "AttentionTranslator",
        _attention_translator,
        reload=lambda: {"network": toy_seq2seq()},
        skips={
            "resumes_mid_epoch": NONE_OF_OURS,
            "ddp_equal": "each process takes the mean over the tokens of its own half, as all translation models do",
        },
    ),
)


DATAMODULES: dict[str, Callable[[Path], LightningDataModule]] = {
    "TranslationDataModule": _translation,
}
