"""A shuffled order of any length over a set of any size, shared out among processes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data.distributed import DistributedSampler


class RepeatingSampler(DistributedSampler[Any]):
    """As many positions per epoch as asked for: one permutation after another, each complete before the next.

    The order depends on the seed and the epoch alone, so that a run resumed after an epoch goes on as if it had not
    stopped. Lightning keeps a `DistributedSampler` as it is; process `r` of `W` takes every `W`-th position from `r`.

    Args:
        size: Number of examples of the data set, at least 1.
        num_samples: Positions per epoch and process.
        seed: Seed of the order.
        num_replicas: Number of processes.
        rank: This process.
    """

    def __init__(self, size: int, num_samples: int, seed: int = 0, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(range(size), num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]  # any sized thing does
        self.size = size
        self.num_samples = num_samples
        self.total_size = num_samples * num_replicas

    def __iter__(self) -> Iterator[int]:
        """Positions of this process, in order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        rounds = -(-self.total_size // self.size)
        order = torch.cat([torch.randperm(self.size, generator=generator) for _ in range(rounds)])
        return iter(order[self.rank : self.total_size : self.num_replicas].tolist())
