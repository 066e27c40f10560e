"""Relaxed words in the place of tokens, by a hook on a model's word embedding."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from torch import Tensor, nn


class SoftWords(NamedTuple):
    """Relaxed words of one batch.

    Attributes:
        input_ids: The batch's tokens `(B, T)`, by which its pass through the embedding is known.
        places: Where words are relaxed, bool `(B, T)`; M are true.
        probabilities: Over the vocabulary, `(M, V)`.
    """

    input_ids: Tensor
    places: Tensor
    probabilities: Tensor


class SoftEmbedding:
    """Gives a word embedding the mixture `probabilities @ weight` at relaxed places of known batches.

    Gradients flow into the embedding by tokens and mixtures, and into the probabilities. Other batches pass unchanged.

    Args:
        embedding: The model's word embedding.
        kept: Number of batches that are known at once.
    """

    def __init__(self, embedding: nn.Embedding, kept: int = 1) -> None:
        self.known: deque[SoftWords] = deque(maxlen=kept)
        self.passing: SoftWords | None = None
        self._handle = embedding.register_forward_hook(self._mix)

    def remove(self) -> None:
        """Leaves the embedding as it was found."""
        self._handle.remove()
        self.known.clear()

    def _mix(self, embedding: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        ids = inputs[0]
        for soft in (self.passing, *self.known):
            if soft is not None and ids.data_ptr() == soft.input_ids.data_ptr() and ids.shape == soft.input_ids.shape:
                table: Any = embedding.weight
                mixture = soft.probabilities.to(table.dtype) @ table
                return output.masked_scatter(soft.places[..., None].expand_as(output), mixture.to(output.dtype))
        return None


def word_embedding(module: nn.Module, vocab_size: int) -> nn.Embedding:
    """The word embedding of a model: of `get_input_embeddings`, or its only `nn.Embedding` of that many words.

    Raises:
        ValueError: If there is none, or more than one, or the vocabularies differ.
    """
    for child in module.modules():
        method = getattr(child, "get_input_embeddings", None)
        found = method() if callable(method) else None
        if isinstance(found, nn.Embedding) and found.num_embeddings == vocab_size:
            return found
    tables = {name: child for name, child in module.named_modules() if isinstance(child, nn.Embedding)}
    fitting = [child for child in tables.values() if child.num_embeddings == vocab_size]
    if len(fitting) == 1:
        return fitting[0]
    sizes = {name: child.num_embeddings for name, child in tables.items()}
    raise ValueError(
        f"{type(module).__name__} has no single word embedding of the augmenter's {vocab_size} words; its embeddings"
        f" have {sizes}. Classifier and augmenter need one tokenizer, and as many embedding rows each."
    )
