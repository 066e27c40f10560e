"""Batch samplers whose participation pattern is known, which is what the sensitivity is computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import BatchSampler


class FixedOrderBatchSampler(BatchSampler):
    """One random partition into batches, frozen, and visited in the same order in every epoch.

    An example then takes part once per epoch, exactly ``len(sampler)`` batches apart.

    Args:
        num_examples: Number ``N`` of examples.
        batch_size: Examples per batch and process.
        seed: Seed of the partition; the same on every process.
        drop_last: Leave out the last batch where it is short.
        rank: This process, where several share each batch.
        world_size: Number of processes.

    Guarantees:
        - Every index comes at most once per epoch, in the same batch of every epoch.
        - The global batches depend on ``num_examples``, ``batch_size * world_size``, ``seed`` and ``drop_last`` only.

    Raises:
        ValueError: On sizes below 1, no batch at all, or a last batch too short to give every process an example.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value in (("num_examples", num_examples), ("batch_size", batch_size), ("world_size", world_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value!r}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, {world_size}), but is {rank!r}.")
        self.batch_size, self.drop_last, self.seed = batch_size, drop_last, seed
        self.num_examples, self.rank, self.world_size = num_examples, rank, world_size
        self.global_batch_size = batch_size * world_size
        last = num_examples % self.global_batch_size
        if drop_last and num_examples < self.global_batch_size:
            raise ValueError(
                f"drop_last=True leaves no batch: {num_examples} examples are fewer than one batch of"
                f" {self.global_batch_size}. Lower batch_size."
            )
        if not drop_last and 0 < last < world_size:
            raise ValueError(
                f"The last batch has {last} examples for {world_size} processes. Pass drop_last=True, or a batch_size"
                " that does not leave so few."
            )
        self._order = torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed))
        self._start = 0
        self._position: Callable[[], int] | None = None

    def start_at(self, batch: int) -> None:
        """Lets the next pass, and only that, begin at ``batch``: where a resumed run left its epoch."""
        self._start = batch % len(self)

    def follow(self, position: Callable[[], int]) -> None:
        """Lets every pass begin at the batch that ``position`` names when the pass is begun."""
        self._position = position

    def share(self, batch: int) -> list[int]:
        """This process's indices of one batch of the epoch."""
        members = self._order[batch * self.global_batch_size : (batch + 1) * self.global_batch_size]
        return members[self.rank :: self.world_size].tolist()

    def __len__(self) -> int:
        """Batches per full pass."""
        whole, rest = divmod(self.num_examples, self.global_batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields this process's share of each batch."""
        start, self._start = self._start, 0
        if self._position is not None:
            start = self._position() % len(self)
        for batch in range(start, len(self)):
            yield self.share(batch)
