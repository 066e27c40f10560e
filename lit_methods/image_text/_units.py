"""Captions as lists of distinct units, a noun with or without its adjective (MACK, Section "matching")."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CaptionUnits:
    """T captions that share Q distinct units, in compressed rows: caption t has `unit[offsets[t]:offsets[t + 1]]`.

    Attributes:
        head: Word of each unit's noun `(Q,)`, int64.
        modifier: Word of its adjective `(Q,)`, -1 where it has none.
        unit: Unit of each mention, caption after caption `(M,)`.
        offsets: Where each caption begins, and the end `(T + 1,)`.
    """

    head: Tensor
    modifier: Tensor
    unit: Tensor
    offsets: Tensor

    @classmethod
    def from_mentions(cls, captions: Sequence[Sequence[tuple[int, int]]]) -> "CaptionUnits":
        """Gathers the `(head, modifier)` word ids of each caption's mentions; -1 stands for no modifier."""
        found: dict[tuple[int, int], int] = {}
        unit = [found.setdefault(mention, len(found)) for mentions in captions for mention in mentions]
        pairs = torch.tensor(list(found), dtype=torch.int64).reshape(-1, 2)
        lengths = torch.tensor([0, *map(len, captions)], dtype=torch.int64)
        return cls(pairs[:, 0], pairs[:, 1], torch.tensor(unit, dtype=torch.int64), lengths.cumsum(0))

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> Tensor:
        """Mentions of each caption `(T,)`."""
        return self.offsets.diff()

    def vectors(self, words: Tensor, modifier_weight: float = 1.0) -> Tensor:
        """Unit vectors `(Q, D)` from word vectors `(K, D)`: the noun's plus the weighted adjective's."""
        heads, modifiers = words[self.head], words[self.modifier.clamp(min=0)]
        return heads + modifier_weight * modifiers * (self.modifier >= 0).unsqueeze(1)


@dataclass(frozen=True)
class UnitTable:
    """What one product with the regions needs: word directions, and units as sums of two of them.

    The rows of a similarity table are the V words in use, then the C composite units. A composite's cosine is
    `(w_h r.h + w_m r.m)` with `w_h = |p_h| / |p_h + c p_m|` and `w_m = c |p_m| / |p_h + c p_m|`, so that composites
    cost no product of their own.

    Attributes:
        directions: Normalized vectors of the words in use `(V, D)`.
        head: Row of each composite's noun `(C,)`.
        modifier: Row of its adjective `(C,)`.
        weights: `w_h` and `w_m` `(2, C, 1)`.
        unit: Row of each mention `(M,)`.
        offsets: Where each caption begins, and the end `(T + 1,)`.
        groups: Captions of equal length: their positions `(n,)` and their rows `(n, length)`.
    """

    directions: Tensor
    head: Tensor
    modifier: Tensor
    weights: Tensor
    unit: Tensor
    offsets: Tensor
    groups: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def build(cls, captions: CaptionUnits, words: Tensor, modifier_weight: float = 1.0) -> "UnitTable":
        """Prepares captions for scoring.

        Args:
            captions: T captions.
            words: Word vectors `(K, D)`, not normalized: their norms decide how an adjective weighs.
            modifier_weight: Weight c of the adjective in its sum.

        Raises:
            ValueError: If a word id is not below K.
        """
        device = words.device
        head, modifier = captions.head.to(device), captions.modifier.to(device)
        if head.numel() and int(torch.maximum(head, modifier).max()) >= len(words):
            raise ValueError(f"captions name word {int(torch.maximum(head, modifier).max())} of {len(words)} words.")
        composite = modifier >= 0
        used, rows = torch.unique(torch.cat([head, modifier[composite]]), return_inverse=True)
        vectors = words[used]
        norms = vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(words.dtype).tiny)
        row, modifier_row = rows[: len(head)].clone(), rows[len(head) :]
        head_row = row[composite]
        sums = vectors[head_row] + modifier_weight * vectors[modifier_row]
        length = sums.norm(dim=1, keepdim=True).clamp_min(torch.finfo(words.dtype).tiny)
        weights = torch.stack([norms[head_row] / length, modifier_weight * norms[modifier_row] / length])
        row[composite] = len(used) + torch.arange(len(head_row), device=device)
        unit, offsets = row[captions.unit.to(device)], captions.offsets.to(device)
        return cls(vectors / norms, head_row, modifier_row, weights, unit, offsets, _by_length(unit, offsets))

    @property
    def num_rows(self) -> int:
        """Rows of a similarity table, V + C."""
        return len(self.directions) + len(self.head)

    @property
    def num_captions(self) -> int:
        """Number of captions T."""
        return len(self.offsets) - 1

    def to(self, dtype: torch.dtype) -> "UnitTable":
        """The same table with directions and weights of another type."""
        return UnitTable(
            self.directions.to(dtype),
            self.head,
            self.modifier,
            self.weights.to(dtype),
            self.unit,
            self.offsets,
            self.groups,
        )


def _by_length(unit: Tensor, offsets: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    lengths, groups = offsets.diff(), []
    for length in torch.unique(lengths[lengths > 0]).tolist():
        captions = (lengths == length).nonzero().squeeze(1)
        rows = unit[offsets[captions].unsqueeze(1) + torch.arange(length, device=unit.device)]
        groups.append((captions, rows))
    return tuple(groups)
