"""The dictionary of word prototypes, each the mean feature of the regions that carry the word (MACK, Section 2(a))."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class KnowledgeBase(nn.Module):
    """K words, their prototypes, and how often each was a head or a modifier of a name.

    Prototypes are buffers: only a map of them is ever trained. The words travel in the state dict, and a state dict of
    another size may be loaded, so that a checkpoint needs nothing beside it.

    Args:
        words: The K words, each once; empty for a base that `load_state_dict` fills.
        prototypes: Mean features `(K, D)`, raw and not normalized.
        counts: Regions behind each prototype `(K,)`; None for ones.
        head_counts: How often each word was the last of a name `(K,)`; None for `counts`.
        modifier_counts: How often it stood before the last `(K,)`; None for zeros.

    Guarantees:
        - Merging two bases equals building one from all their regions, to rounding.
        - What is saved and loaded again is the same bit for bit; nothing is read through pickle.

    Raises:
        ValueError: If a word comes twice, sizes disagree, or a prototype is not finite.
    """

    prototypes: Tensor
    counts: Tensor
    head_counts: Tensor
    modifier_counts: Tensor

    def __init__(
        self,
        words: Sequence[str] = (),
        prototypes: Tensor | None = None,
        counts: Tensor | None = None,
        head_counts: Tensor | None = None,
        modifier_counts: Tensor | None = None,
    ) -> None:
        super().__init__()
        size = len(words)
        prototypes = torch.zeros(0, 0) if prototypes is None else prototypes
        counts = torch.ones(size, dtype=torch.int64) if counts is None else counts
        tables = {
            "prototypes": prototypes,
            "counts": counts,
            "head_counts": counts.clone() if head_counts is None else head_counts,
            "modifier_counts": torch.zeros_like(counts) if modifier_counts is None else modifier_counts,
        }
        if prototypes.ndim != 2:
            raise ValueError(f"prototypes is {tuple(prototypes.shape)}; pass (K, D), one row for each word.")
        for name, table in tables.items():
            if len(table) != size:
                raise ValueError(f"{name} has {len(table)} rows and words {size}; they must agree.")
            self.register_buffer(name, table)
        finite = prototypes.isfinite().all(dim=1)
        if not finite.all():
            bad = words[int((~finite).nonzero()[0])]
            raise ValueError(f"prototypes: that of {bad!r} is NaN or infinite; build the knowledge again.")
        self._set_words(words)

    @classmethod
    def load(cls, folder: str | Path) -> "KnowledgeBase":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If the two files disagree.
        """
        from lit_methods.image_text.knowledge_files import load

        return load(folder)

    @classmethod
    def from_published(cls, prototypes: str | Path, vocabulary: str | Path) -> "KnowledgeBase":
        """Imports the authors' layout: an array `(K, D)` in `.npy` and a JSON pair `[word to id, id to word]`.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If the array is pickled or the two disagree.
        """
        from lit_methods.image_text.knowledge_files import from_published

        return from_published(prototypes, vocabulary)

    def save(self, folder: str | Path) -> None:
        """Writes `prototypes.safetensors` and `words.json` into a folder."""
        from lit_methods.image_text.knowledge_files import save

        save(self, folder)

    @property
    def words(self) -> tuple[str, ...]:
        """The words in the order of their rows."""
        return self._words

    @property
    def feature_size(self) -> int:
        """Feature size D."""
        return self.prototypes.shape[1]

    def __len__(self) -> int:
        """Number of words K."""
        return len(self._words)

    def __contains__(self, word: str) -> bool:
        """Whether a word has a prototype."""
        return word in self._ids

    def lookup(self, word: str) -> int:
        """Row of a word, -1 where it is not known."""
        return self._ids.get(word, -1)

    def is_head(self, word: str) -> bool:
        """Whether a known word ends names at least as often as it begins them."""
        row = self.lookup(word)
        return row >= 0 and self._head[row]

    def is_modifier(self, word: str) -> bool:
        """Whether a known word mostly stands before the last word of a name."""
        row = self.lookup(word)
        return row >= 0 and not self._head[row]

    def subset(self, min_count: int) -> "KnowledgeBase":
        """The words with at least `min_count` regions.

        Raises:
            ValueError: If no word is left.
        """
        kept = (self.counts >= min_count).nonzero().squeeze(1)
        if not len(kept):
            raise ValueError(
                f"min_count={min_count} leaves no word; the commonest has {int(self.counts.max())} regions."
            )
        tables = [table[kept] for table in (self.prototypes, self.counts, self.head_counts, self.modifier_counts)]
        return KnowledgeBase([self._words[row] for row in kept.tolist()], *tables)

    def merge(self, other: "KnowledgeBase") -> "KnowledgeBase":
        """The base of both bases' regions: prototypes are averaged by their counts.

        Raises:
            ValueError: If the feature sizes differ.
        """
        if self.feature_size != other.feature_size:
            raise ValueError(f"other has feature size {other.feature_size}, this base {self.feature_size}.")
        words = list(dict.fromkeys([*self._words, *other._words]))
        rows = {word: row for row, word in enumerate(words)}
        sums = torch.zeros(len(words), self.feature_size, dtype=torch.float64)
        counts = torch.zeros(3, len(words), dtype=self.counts.dtype)
        for base in (self, other):
            row = torch.tensor([rows[word] for word in base._words], dtype=torch.int64)
            sums.index_add_(0, row, base.prototypes.double().cpu() * base.counts.cpu().unsqueeze(1))
            own = torch.stack([base.counts, base.head_counts, base.modifier_counts]).cpu()
            counts.index_add_(1, row, own)
        return KnowledgeBase(words, (sums / counts[0].unsqueeze(1)).to(self.prototypes.dtype), *counts)

    def get_extra_state(self) -> dict[str, Any]:
        """The words, so that a state dict is complete."""
        return {"words": list(self._words)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes the words of a state dict."""
        self._set_words(state["words"])

    def _set_words(self, words: Iterable[str]) -> None:
        self._words = tuple(words)
        self._ids = {word: row for row, word in enumerate(self._words)}
        if len(self._ids) != len(self._words):
            twice = next(word for row, word in enumerate(self._words) if self._ids[word] != row)
            raise ValueError(f"words: {twice!r} comes twice; merge its prototypes first.")
        self._head = (self.head_counts >= self.modifier_counts).tolist()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("prototypes", "counts", "head_counts", "modifier_counts"):
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is not None and saved.shape != own.shape:
                setattr(self, name, own.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
