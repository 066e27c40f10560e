"""Text classification sets of the Hugging Face hub, or a local folder of the same layout."""

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from torch import Tensor

from .degradation import Degradation
from .hub import HubSource, find_column, read_labels
from .splits import Split
from .text import TextDataModule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HubTextDataModule(TextDataModule):
    """A text classification set of the hub, or parquet files `<split>-*.parquet` in a folder.

    A split "validation" is used where it exists, and else `val_fraction` of "train". `class_names` and
    `num_classes` are known after `setup`.

    Args:
        dataset: Name of the data set on the hub.
        data_dir: Folder of `<split>-*.parquet` files; None reads `$LIT_METHODS_DATA/<end of the name>` if that
            holds them, and else the hub.
        subset: Name of a configuration of the hub's data set; None for its default.
        text_column: Column of the texts; None for the only column of strings.
        label_column: Column of the labels; None for the only column of class labels.
        cache_dir: Folder of the `datasets` cache; None for its default.
        batch_size: Examples per batch and process.
        tokenizer: A Hugging Face tokenizer, or the name or folder of one for `AutoTokenizer.from_pretrained`; None
            counts words on the training part in use.
        max_length: Tokens, special ones included, to which texts are cut; None cuts nothing.
        pad_to_max_length: Whether each batch has T = `max_length`; else T is that of its longest text.
        max_vocab_size: Most entries of the vocabulary that `tokenizer=None` counts.
        val_fraction: Part of the training set held out for validation, in [0, 1); 0 holds out nothing.
        split_seed: Seed of the split.
        num_workers: Worker processes of each loader.
        drop_last: Whether training drops the last, smaller batch.
        degradation: Low data, class imbalance and label noise, after the split; None leaves the data set as it is.
        yield_index: Whether training batches have a key "index": positions in `train_set`, int64 `(B,)`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        dataset: str = "SetFit/sst5",
        data_dir: str | Path | None = None,
        subset: str | None = None,
        text_column: str | None = None,
        label_column: str | None = None,
        cache_dir: str | Path | None = None,
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
            tokenizer=tokenizer,
            max_length=max_length,
            pad_to_max_length=pad_to_max_length,
            max_vocab_size=max_vocab_size,
            val_fraction=val_fraction,
            split_seed=split_seed,
            num_workers=num_workers,
            drop_last=drop_last,
            degradation=degradation,
            yield_index=yield_index,
        )
        self.source = HubSource(dataset=dataset, data_dir=data_dir, subset=subset, cache_dir=cache_dir)
        self.text_column = text_column
        self.label_column = label_column

    def __getattr__(self, name: str) -> NoReturn:
        """Names what `setup` must come before."""
        hint = "; call setup('fit') first" if name in {"class_names", "num_classes"} else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}.")

    def prepare_data(self) -> None:
        """Downloads the data set, unless a folder holds it, and a tokenizer that was given by name."""
        self.source.download()
        super().prepare_data()

    def read(self, split: Split) -> tuple[list[str], Tensor] | None:
        """Reads texts and labels `(N,)` of a split; None if it has no "validation".

        Raises:
            ValueError: If a column does not exist or holds something else.
        """
        rows = self.source.rows(split)
        if rows is None:
            return None
        text_column = find_column(rows, self.text_column, "text_column", "string")
        label_column = find_column(rows, self.label_column, "label_column", "ClassLabel")
        labels, names = read_labels(rows, label_column, split)
        if names is not None:
            self.class_names = self.kept_names(names)
        texts = rows[text_column][:]
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(
                    f"text_column={text_column!r} of split {split!r} holds {text!r}, no text, in row {index}."
                )
        return texts, labels
