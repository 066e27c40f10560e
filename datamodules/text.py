"""What the text datamodules share: the tokenizer, and padded batches."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .classification import ClassificationDataModule
from .degradation import Degradation
from .splits import Split
from .text_dataset import PaddingCollator, TextDataset
from .tokenizers import load_tokenizer, train_word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextDataModule(ClassificationDataModule[list[str], TextDataset]):
    """Labelled texts in batches `{"input_ids": (B, T), "attention_mask": (B, T), "label": (B,)}`, all int64.

    Texts are tokenized once, when a stage first needs them. The validation set is a stratified part of the
    training set unless the data set brings its own; the parts depend on `split_seed` alone and agree between ranks.
    Prediction runs over the test set.

    Args:
        batch_size: Examples per batch and process.
        tokenizer: A Hugging Face tokenizer, or the name or folder of one for `AutoTokenizer.from_pretrained`; None
            counts words on the training part in use (`train_word_tokenizer`).
        max_length: Tokens, special ones included, to which texts are cut; None cuts nothing.
        pad_to_max_length: Whether each batch has T = `max_length`, for a compiled model, say; else T is that of its
            longest text.
        max_vocab_size: Most entries of the vocabulary that `tokenizer=None` counts.
        val_fraction: Part of the training set held out for validation, in [0, 1); 0 holds out nothing.
        split_seed: Seed of the split.
        num_workers: Worker processes of each loader.
        drop_last: Whether training drops the last, smaller batch.
        degradation: Low data, class imbalance and label noise, after the split; None leaves the data set as it is.
        yield_index: Whether training batches have a key "index": positions in `train_set`, int64 `(B,)`.

    Attributes:
        train_set: Training part, a `TextDataset`; None before `setup("fit")`.
        val_set: Validation part; None before `setup("fit")` or where there is none.
        test_set: Test part; None before `setup("test")`.
        true_labels: Training labels `(N,)` before label noise; None before `setup("fit")`.
        corrupted: Whether noise changed each training label `(N,)`, bool; None before `setup("fit")`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        batch_size: int = 32,
        tokenizer: "PreTrainedTokenizerBase | str | Path | None" = None,
        max_length: int | None = 128,
        pad_to_max_length: bool = False,
        max_vocab_size: int = 10_000,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        num_workers: int = 0,
        drop_last: bool = False,
        degradation: Degradation | None = None,
        yield_index: bool = False,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            val_fraction=val_fraction,
            split_seed=split_seed,
            num_workers=num_workers,
            drop_last=drop_last,
            degradation=degradation,
            yield_index=yield_index,
        )
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length={max_length} must be at least 1.")
        if pad_to_max_length and max_length is None:
            raise ValueError("pad_to_max_length=True needs a length; pass max_length=.")
        self.max_length = max_length
        self.pad_to_max_length = pad_to_max_length
        self.max_vocab_size = max_vocab_size
        self._given_tokenizer = tokenizer
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer in use; the default one is known after `setup`.

        Raises:
            RuntimeError: If it is not known yet.
        """
        if self._tokenizer is None and self._given_tokenizer is not None:
            self._tokenizer = load_tokenizer(self._given_tokenizer)
        if self._tokenizer is None:
            raise RuntimeError(f"{type(self).__name__} has no tokenizer yet; call setup('fit') first, or pass one.")
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added ones included."""
        return len(self.tokenizer)

    @property
    def pad_token_id(self) -> int:
        """Id that fills up `input_ids`."""
        pad: int = self.tokenizer.pad_token_id
        return pad

    @property
    def collate_fn(self) -> Callable[[Any], dict[str, Tensor]]:
        """Pads examples to one length."""
        length = self.max_length if self.pad_to_max_length else None
        return PaddingCollator(self.pad_token_id, self.tokenizer.padding_side, length)

    def prepare_data(self) -> None:
        """Downloads a tokenizer that was given by name."""
        if isinstance(self._given_tokenizer, str | Path):
            load_tokenizer(self._given_tokenizer)

    def setup(self, stage: str | None = None) -> None:
        """Loads the parts that a stage needs, each once; None loads all.

        A test needs the training part too where the vocabulary is counted on it.

        Raises:
            DatasetNotFoundError: If the files are at none of the places looked at.
            ValueError: If a class has fewer examples than `degradation` asks for.
        """
        if self._given_tokenizer is None:
            super().setup("fit")
        super().setup(stage)

    def select(self, examples: list[str], positions: Tensor) -> list[str]:
        """The texts at `positions`."""
        return [examples[position] for position in positions.tolist()]

    def make_part(self, examples: list[str], labels: Tensor, split: Split) -> TextDataset:
        """The data set of one part; the training part settles the default vocabulary."""
        if self._tokenizer is None and self._given_tokenizer is None:
            self._tokenizer = train_word_tokenizer(examples, self.max_vocab_size)
        return TextDataset(texts=examples, labels=labels, tokenizer=self.tokenizer, max_length=self.max_length)
