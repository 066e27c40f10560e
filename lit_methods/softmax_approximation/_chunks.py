"""How attention is cut into pieces that stay in cache, so that little of it is dense at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_ELEMENTS = 2**18
ACCELERATOR_ELEMENTS = 2**26


@dataclass(frozen=True)
class Geometry:
    """Sizes of one attention call.

    Attributes:
        batch: ``B``.
        key_heads: ``H_kv``.
        groups: ``H / H_kv``, query heads that share a key head.
        queries: ``T_q``.
        keys: ``T_k``.
    """

    batch: int
    key_heads: int
    groups: int
    queries: int
    keys: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(B, H, T_q, T_k)``."""
        return self.batch, self.key_heads * self.groups, self.queries, self.keys

    def chunks(self, elements: int) -> Iterator[Chunk]:
        """Pieces of at most so many weights (but at least one query each), whole matrices where they fit."""
        head = max(1, self.groups * self.queries * self.keys)
        batches = max(1, elements // (head * self.key_heads))
        heads = self.key_heads if batches > 1 else max(1, min(self.key_heads, elements // head))
        queries = max(1, self.queries if head <= elements else elements // (self.groups * self.keys))
        for batch in range(0, self.batch, batches):
            for key_head in range(0, self.key_heads, heads):
                for query in range(0, self.queries, queries):
                    yield Chunk(
                        self,
                        slice(batch, min(batch + batches, self.batch)),
                        slice(key_head, min(key_head + heads, self.key_heads)),
                        slice(query, min(query + queries, self.queries)),
                    )


@dataclass(frozen=True)
class Chunk:
    """One piece: some batch elements, some key heads, some queries, all keys."""

    geometry: Geometry
    batch: slice
    heads: slice
    queries: slice

    @property
    def shape(self) -> torch.Size:
        """``(b, h, G, t, T_k)``."""
        batch, heads, queries = (part.stop - part.start for part in (self.batch, self.heads, self.queries))
        return torch.Size((batch, heads, self.geometry.groups, queries, self.geometry.keys))

    def of_keys(self, tensor: Tensor) -> Tensor:
        """The piece's view of ``(B, H_kv, T_k, d)``: ``(b, h, T_k, d)``."""
        return tensor[self.batch, self.heads]

    def of_queries(self, tensor: Tensor) -> Tensor:
        """The piece's view of ``(B, H, T_q, d)`` or ``(B, H, T_q, T_k)``: ``(b, h, G, t, ...)``."""
        heads = tensor.view(len(tensor), self.geometry.key_heads, self.geometry.groups, *tensor.shape[2:])
        return heads[self.batch, self.heads, :, self.queries]

    def of_broadcast(self, tensor: Tensor) -> Tensor:
        """The piece's view of what broadcasts to ``(B, H, T_q, T_k)``, its sizes of 1 left as they are."""
        batch, heads, queries, _ = tensor.shape
        split = (self.geometry.key_heads, self.geometry.groups) if heads > 1 else (1, 1)
        everything = slice(None)
        return tensor.view(batch, *split, *tensor.shape[2:])[
            self.batch if batch > 1 else everything,
            self.heads if heads > 1 else everything,
            :,
            self.queries if queries > 1 else everything,
        ]


def default_elements(device: torch.device) -> int:
    """Weights of one chunk: what a processor's cache holds a few times over, or enough to fill an accelerator."""
    return CPU_ELEMENTS * torch.get_num_threads() if device.type == "cpu" else ACCELERATOR_ELEMENTS
