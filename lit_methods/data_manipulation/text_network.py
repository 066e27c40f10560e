"""A Hugging Face encoder as a plain network of token batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn


class TextNetwork(nn.Module):
    """Sequence classification by a small BERT with random weights, or by a pretrained encoder.

    Args:
        num_classes: Number of logits.
        pretrained: Name or folder for `AutoModelForSequenceClassification.from_pretrained`; None for the small BERT.
        vocab_size: Words of the small BERT; at least as many as the tokenizer has.
        hidden_size: Its width.
        num_layers: Its layers.
        num_heads: Its attention heads.
        dropout: Its dropout.
    """

    def __init__(
        self,
        num_classes: int,
        pretrained: str | Path | None = None,
        vocab_size: int = 10_000,
        hidden_size: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

        self.encoder: Any
        if pretrained is not None:
            loaded = AutoModelForSequenceClassification.from_pretrained(str(pretrained), num_labels=num_classes)
            self.encoder = loaded
            return
        options: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "intermediate_size": 4 * hidden_size,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "num_labels": num_classes,
        }
        self.encoder = BertForSequenceClassification(BertConfig(**options))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `(B, C)` of tokens `(B, T)` with their mask `(B, T)`."""
        logits: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits
