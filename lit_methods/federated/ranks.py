"""What the processes of a run tell each other."""

from typing import Any

import torch.distributed as dist
from torch import Tensor


def from_all_ranks(thing: Any, world_size: int) -> list[Any]:
    """The things of all ranks, in their order."""
    if world_size == 1:
        return [thing]
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, thing)
    return parts


def sum_over_ranks(values: Tensor, world_size: int) -> Tensor:
    """The sum of all ranks' values, written into them."""
    if world_size > 1:
        dist.all_reduce(values)
    return values
