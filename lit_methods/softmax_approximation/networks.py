"""Transformers from torch's own layers, and Hugging Face encoders, in the forms that the LightningModules take."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn


class TokenEmbedding(nn.Module):
    """Token embeddings times ``sqrt(D)`` plus sinusoidal positions, then dropout (Vaswani et al. 2017, section 3.5).

    Args:
        vocab_size: Number of token ids.
        hidden_size: ``D``, an even number.
        max_length: Most tokens of a text.
        dropout: Probability that a component is dropped.

    Raises:
        ValueError: If a size is out of range.
    """

    positions: Tensor

    def __init__(self, vocab_size: int, hidden_size: int, max_length: int, dropout: float = 0.1) -> None:
        super().__init__()
        if vocab_size < 1 or max_length < 1:
            raise ValueError(f"vocab_size={vocab_size} and max_length={max_length} must be at least 1.")
        if hidden_size < 2 or hidden_size % 2:
            raise ValueError(f"hidden_size={hidden_size} must be even: sines and cosines come in pairs.")
        self.tokens = nn.Embedding(vocab_size, hidden_size)
        nn.init.normal_(self.tokens.weight, std=hidden_size**-0.5)
        self.dropout = nn.Dropout(dropout)
        rates = torch.exp(torch.arange(0, hidden_size, 2) * (-math.log(10_000.0) / hidden_size))
        angles = torch.arange(max_length)[:, None] * rates
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], -1).flatten(1), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Vectors ``(B, T, D)`` of token ids ``(B, T)``.

        Raises:
            ValueError: If a text is longer than ``max_length``.
        """
        length = input_ids.shape[1]
        if length > len(self.positions):
            raise ValueError(f"input_ids has {length} tokens, but max_length is {len(self.positions)}: cut the texts.")
        vectors = self.tokens(input_ids) * math.sqrt(self.positions.shape[1]) + self.positions[:length]
        return cast(Tensor, self.dropout(vectors))


class TransformerEncoder(nn.Module):
    """Token embedding and ``nn.TransformerEncoder``.

    Args:
        vocab_size: Number of token ids.
        hidden_size: ``D``.
        num_layers: Encoder layers.
        num_heads: ``H``.
        feedforward_size: Width of the layers' inner networks.
        dropout: Of attention weights, inner networks, residual branches and embeddings.
        max_length: Most tokens of a text.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        feedforward_size: int = 256,
        dropout: float = 0.1,
        max_length: int = 512,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.embedding = TokenEmbedding(vocab_size, hidden_size, max_length, dropout)
        layer = nn.TransformerEncoderLayer(hidden_size, num_heads, feedforward_size, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states ``(B, T, D)`` of token ids and mask (1: token, 0: padding), ``(B, T)`` each."""
        hidden = self.encoder(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        return cast(Tensor, hidden)


class HuggingFaceEncoder(nn.Module):
    """Any text encoder of transformers, with fresh weights from a configuration or with pretrained ones.

    Args:
        model_type: Kind of the model with fresh weights, such as ``"bert"``.
        config: Settings of its configuration class.
        pretrained: Folder of a saved model, or name of one that is in the hub's cache; then the other two are unused.

    Raises:
        ValueError: If both or none of ``model_type`` and ``pretrained`` are given.
        FileNotFoundError: If the pretrained model is not on this machine.
    """

    def __init__(
        self, model_type: str | None = None, config: dict[str, Any] | None = None, pretrained: str | None = None
    ) -> None:
        super().__init__()
        if (model_type is None) == (pretrained is None):
            raise ValueError(
                f"model_type={model_type!r} and pretrained={pretrained!r}: give one, for fresh or for trained weights."
            )
        from transformers import AutoConfig, AutoModel

        if model_type is not None:
            settings = AutoConfig.for_model(model_type, **(config or {}))
            self.model = AutoModel.from_config(settings)  # type: ignore[no-untyped-call]  # transformers does not type it
        elif pretrained is not None:
            try:
                self.model = AutoModel.from_pretrained(pretrained, local_files_only=True)
            except OSError as error:
                raise FileNotFoundError(
                    f"pretrained={pretrained!r} is no folder of a saved model and not in the hub's cache; fetch it once"
                    f" by `hf download {pretrained}`."
                ) from error
        self.hidden_size: int = self.model.config.hidden_size
        embeddings = getattr(self.model, "embeddings", None)
        table = getattr(embeddings, "position_embeddings", None)
        self._counts_from_zero = hasattr(embeddings, "position_ids") and getattr(table, "padding_idx", 0) is None

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states ``(B, T, D)`` of token ids and mask (1: token, 0: padding), ``(B, T)`` each."""
        positions = {}
        if self._counts_from_zero:  # one row per text: private training needs each example's own gradient
            positions["position_ids"] = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **positions)
        return cast(Tensor, output.last_hidden_state)


class TransformerSeq2Seq(nn.Module):
    """The encoder-decoder of Vaswani et al. (2017) on ``nn.Transformer``, with an embedding for each side.

    Args:
        source_vocab_size: Number of token ids of the source.
        target_vocab_size: Number of token ids of the target.
        hidden_size: ``D``.
        num_layers: Layers of the encoder, and of the decoder.
        num_heads: ``H``.
        feedforward_size: Width of the layers' inner networks.
        dropout: Of attention weights, inner networks, residual branches and embeddings.
        max_length: Most tokens of either side.
    """

    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        hidden_size: int = 256,
        num_layers: int = 3,
        num_heads: int = 8,
        feedforward_size: int = 512,
        dropout: float = 0.1,
        max_length: int = 40,
    ) -> None:
        super().__init__()
        self.source = TokenEmbedding(source_vocab_size, hidden_size, max_length, dropout)
        self.target = TokenEmbedding(target_vocab_size, hidden_size, max_length, dropout)
        layer = nn.TransformerEncoderLayer(hidden_size, num_heads, feedforward_size, dropout, batch_first=True)
        # nested tensors, which nn.Transformer takes in evaluation, fail under bf16 autocast
        encoder = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(hidden_size), enable_nested_tensor=False)
        self.transformer = nn.Transformer(
            hidden_size,
            num_heads,
            num_decoder_layers=num_layers,
            dim_feedforward=feedforward_size,
            dropout=dropout,
            custom_encoder=encoder,
            batch_first=True,
        )
        self.head = nn.Linear(hidden_size, target_vocab_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, target_ids: Tensor) -> Tensor:
        """Logits of each next target token.

        Args:
            input_ids: Source tokens ``(B, S)``.
            attention_mask: 1 for a source token, 0 for padding, ``(B, S)``.
            target_ids: Target tokens so far ``(B, T)``; padding at their end is never seen by tokens before it.

        Returns:
            Logits ``(B, T, C)``.
        """
        length = target_ids.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=target_ids.device).triu(1)
        padding = attention_mask == 0
        hidden = self.transformer(
            self.source(input_ids),
            self.target(target_ids),
            tgt_mask=later,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return cast(Tensor, self.head(hidden))
