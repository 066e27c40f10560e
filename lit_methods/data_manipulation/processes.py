"""A batch over all processes of a distributed run; on one process, the batch itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def average(tensors: Sequence[Tensor]) -> None:
    """Averages tensors over all processes in place, by one collective call per dtype."""
    if not is_distributed():
        return
    for dtype in {tensor.dtype for tensor in tensors}:
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in same])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for tensor, part in zip(same, torch.split(flat, [tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(part.view_as(tensor))


class Share(NamedTuple):
    """Where this process' examples lie in the batch of all.

    Attributes:
        start: Position of its first example.
        size: Number of its examples.
        total: Number of all examples.
        sizes: Examples of each process.
    """

    start: int
    size: int
    total: int
    sizes: tuple[int, ...]

    def own(self, values: Tensor) -> Tensor:
        """This process' part of values `(total, ...)`."""
        return values[self.start : self.start + self.size]

    @property
    def scale(self) -> float:
        """Factor that makes the mean over processes of their means that over all examples; 1 for equal sizes."""
        return len(self.sizes) * self.size / self.total


def share_of(size: int, device: torch.device) -> Share:
    """This process' share, by the number of its examples."""
    if not is_distributed():
        return Share(0, size, size, (size,))
    found = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(found, torch.tensor([size], device=device))
    sizes = tuple(int(one) for one in found)
    return Share(sum(sizes[: dist.get_rank()]), size, sum(sizes), sizes)


def gather(values: Tensor, share: Share) -> Tensor:
    """Values `(size,)` of each process, one after another, `(total,)`."""
    if len(share.sizes) == 1:
        return values
    longest = max(share.sizes)
    padded = values.new_zeros(longest)
    padded[: share.size] = values
    found = [torch.empty_like(padded) for _ in share.sizes]
    dist.all_gather(found, padded)
    return torch.cat([part[:size] for part, size in zip(found, share.sizes, strict=True)])


def total(counts: Tensor) -> Tensor:
    """Sum over processes of counts `(C,)`, whose lengths may differ."""
    share = share_of(len(counts), counts.device)
    if len(share.sizes) == 1:
        return counts
    summed = counts.new_zeros(max(share.sizes))
    for part in torch.split(gather(counts, share), list(share.sizes)):
        summed[: len(part)] += part
    return summed
