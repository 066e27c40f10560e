"""Sentence pairs of the Hugging Face hub, or a local folder of the same layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from .hub import HubSource, find_column
from .splits import Split
from .tokenizers import train_word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SentencePairs(Dataset[dict[str, Tensor]]):
    """Tokenized sentence pairs, ``{"input_ids": (S,), "attention_mask": (S,), "target_ids": (T,)}``, all int64."""

    def __init__(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        self.sources, self.targets = sources, targets

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One pair, not padded."""
        source = self.sources[index]
        return {"input_ids": source, "attention_mask": torch.ones_like(source), "target_ids": self.targets[index]}


class TranslationDataModule(LightningDataModule):
    """Sentence pairs in batches `{"input_ids": (B, S), "attention_mask": (B, S), "target_ids": (B, T)}`, all int64.

    Words are counted on the training set, for each side on its own; a sentence becomes `[CLS] words [SEP]`, and ids
    0 to 3 are padding, unknown, start and end. The data set must have the splits "train", "validation" and "test".

    Args:
        dataset: Name of the data set on the hub.
        data_dir: Folder of `<split>-*.parquet` files; None reads `$LIT_METHODS_DATA/<end of the name>` if that
            holds them, and else the hub.
        subset: Name of a configuration of the hub's data set; None for its default.
        source_column: Column of the sentences to translate.
        target_column: Column of the translations.
        cache_dir: Folder of the `datasets` cache; None for its default.
        batch_size: Pairs per batch and process.
        max_length: Tokens, start and end included, to which both sides are cut.
        pad_to_max_length: Whether each batch has S = T = `max_length`; else those of its longest sentences.
        max_vocab_size: Most words of each side, special tokens included.
        min_frequency: Rarer words are unknown ones.
        num_workers: Worker processes of each loader.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        dataset: str = "bentrevett/multi30k",
        data_dir: str | Path | None = None,
        subset: str | None = None,
        source_column: str = "de",
        target_column: str = "en",
        cache_dir: str | Path | None = None,
        batch_size: int = 128,
        max_length: int = 40,
        pad_to_max_length: bool = True,
        max_vocab_size: int = 10_000,
        min_frequency: int = 2,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        if max_length < 3:
            raise ValueError(f"max_length={max_length} must be at least 3: start, one word, end.")
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} must be at least 0.")
        self.source = HubSource(dataset=dataset, data_dir=data_dir, subset=subset, cache_dir=cache_dir)
        self.source_column, self.target_column = source_column, target_column
        self.batch_size, self.max_length, self.pad_to_max_length = batch_size, max_length, pad_to_max_length
        self.max_vocab_size, self.min_frequency, self.num_workers = max_vocab_size, min_frequency, num_workers
        self.tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase] | None = None
        self._parts: dict[Split, SentencePairs] = {}

    def prepare_data(self) -> None:
        """Downloads the data set, unless a folder holds it."""
        self.source.download()

    def setup(self, stage: str | None = None) -> None:
        """Loads the parts that a stage needs, each once; the vocabularies are counted on the training set.

        Raises:
            DatasetNotFoundError: If the files are at none of the places looked at.
            ValueError: If a column does not exist or the data set has no validation set.
        """
        wanted: dict[str | None, tuple[Split, ...]] = {
            "fit": ("train", "validation"),
            "validate": ("train", "validation"),
            "test": ("train", "test"),
            "predict": ("train", "test"),
            None: ("train", "validation", "test"),
        }
        for split in wanted[stage]:
            if split not in self._parts:
                self._parts[split] = self._part(split)

    @property
    def vocab_sizes(self) -> tuple[int, int]:
        """Number of token ids of source and target, known after `setup`.

        Raises:
            RuntimeError: If they are not known yet.
        """
        if self.tokenizers is None:
            raise RuntimeError(f"{type(self).__name__} has no vocabulary yet; call setup('fit') first.")
        return len(self.tokenizers[0]), len(self.tokenizers[1])

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of the training set."""
        return self._loader("train", "fit")

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of the validation set in its order."""
        return self._loader("validation", "fit")

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches of the test set in its order."""
        return self._loader("test", "test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of the test set in its order."""
        return self._loader("test", "predict")

    def collate(self, pairs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Pads pairs on the right, with 0."""
        full = pairs[0]["input_ids"].new_zeros(self.max_length if self.pad_to_max_length else 0)
        return {key: pad_sequence([full, *(pair[key] for pair in pairs)], batch_first=True)[1:] for key in pairs[0]}

    def _part(self, split: Split) -> SentencePairs:
        rows = self.source.rows(split)
        if rows is None:
            raise ValueError(f"dataset={self.source.dataset!r} has no split {split!r}; add {split}-0.parquet.")
        columns = [
            find_column(rows, given, argument, "string")
            for given, argument in ((self.source_column, "source_column"), (self.target_column, "target_column"))
        ]
        texts = [list(rows[column][:]) for column in columns]
        if self.tokenizers is None:
            counted = [train_word_tokenizer(side, self.max_vocab_size, self.min_frequency) for side in texts]
            self.tokenizers = counted[0], counted[1]
        sides = [self._tokens(side, tokenizer) for side, tokenizer in zip(texts, self.tokenizers, strict=True)]
        return SentencePairs(sides[0], sides[1])

    def _tokens(self, texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> list[Tensor]:
        encoded = tokenizer(texts, truncation=True, max_length=self.max_length, return_attention_mask=False)
        return [torch.tensor(tokens, dtype=torch.int64) for tokens in encoded["input_ids"]]

    def _loader(self, split: Split, stage: str) -> DataLoader[Any]:
        if split not in self._parts:
            raise RuntimeError(f"{type(self).__name__} is not set up; call setup({stage!r}) first.")
        return DataLoader(
            self._parts[split],
            batch_size=self.batch_size,
            shuffle=split == "train",
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=self.collate,
        )
