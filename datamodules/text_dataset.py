"""Tokenized texts as a map-style data set, and the collator that pads them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, default_collate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextDataset(Dataset[dict[str, Tensor]]):
    """Texts, tokenized once, as examples `{"input_ids": (T,), "attention_mask": (T,), "label": ()}`, all int64.

    Examples differ in length; `PaddingCollator` makes batches of them.

    Args:
        texts: The N texts.
        labels: Classes `(N,)`, int64.
        tokenizer: A Hugging Face tokenizer.
        max_length: Tokens, special ones included, to which a text is cut; None cuts nothing.

    Raises:
        ValueError: If texts and labels differ in number, or a text has no token.
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Tensor,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int | None = None,
    ) -> None:
        if len(texts) != len(labels):
            raise ValueError(f"texts has {len(texts)} entries and labels {len(labels)}; they must agree.")
        self.texts = list(texts)
        self.labels = labels
        encoded = (
            tokenizer(
                self.texts,
                truncation=max_length is not None,
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            if self.texts
            else []
        )
        self.input_ids = [torch.tensor(tokens, dtype=torch.int64) for tokens in encoded]
        for index, tokens in enumerate(self.input_ids):
            if not len(tokens):
                raise ValueError(
                    f"Text {index}, {self.texts[index]!r}, has no token, and attention over nothing has no value; "
                    "drop it, or pass a tokenizer= that adds special tokens."
                )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One example, not padded."""
        tokens = self.input_ids[index]
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "label": self.labels[index]}


class PaddingCollator:
    """Pads token ids and attention masks to one length and stacks all else, such as "label" and "index".

    Args:
        pad_token_id: Fills `input_ids`; attention masks are filled with 0.
        padding_side: "right" or "left".
        length: Length of each batch; None for that of its longest example.

    Raises:
        ValueError: When called with an example longer than `length`.
    """

    def __init__(self, pad_token_id: int, padding_side: str = "right", length: int | None = None) -> None:
        self.padding_side = padding_side
        self.length = length
        self._fill = {"input_ids": pad_token_id, "attention_mask": 0}

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Batch `{"input_ids": (B, T), "attention_mask": (B, T), "label": (B,), ...}` of B examples."""
        return {key: self._stack(key, [example[key] for example in examples]) for key in examples[0]}

    def _stack(self, key: str, values: list[Any]) -> Tensor:
        if key not in self._fill:
            stacked: Tensor = default_collate(values)
            return stacked
        if self.length is None:
            return pad_sequence(values, True, self._fill[key], self.padding_side)
        longest = max(len(value) for value in values)
        if longest > self.length:
            raise ValueError(f"length={self.length} is below the {longest} tokens of an example; cut texts to it.")
        # pad_sequence pads to the longest, so one full row goes along
        full = values[0].new_empty(self.length)
        return pad_sequence([full, *values], True, self._fill[key], self.padding_side)[1:]
