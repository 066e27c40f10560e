"""Random draws that depend on a seed and a count alone: they survive a resume and agree between processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_MIX = 0x9E3779B97F4A7C15  # odd, so that multiplying by it modulo 2^64 loses nothing


def mixed_seed(*numbers: int) -> int:
    """A seed in [0, 2^63) from whole numbers; other numbers or another order give another seed."""
    state = 0
    for number in numbers:
        state = ((state ^ (number & 0xFFFFFFFFFFFFFFFF)) * _MIX + 1) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 29
    return state >> 1


def seeded_generator(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that starts at `mixed_seed(*numbers)`."""
    return torch.Generator(device).manual_seed(mixed_seed(*numbers))


@contextmanager
def seeded(device: torch.device, *numbers: int) -> Iterator[None]:
    """Runs its body under global random states that start at `mixed_seed(*numbers)`, and restores them."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(mixed_seed(*numbers))
        yield


class DiffusionDraws:
    """Timesteps, noise and label dropout of one training batch.

    They are drawn for the batch of all processes together, and process `r` of `W` takes every `W`-th row from `r`,
    as a distributed sampler hands out examples: two processes train like one with the whole batch.

    Args:
        generator: Where they come from; equal in all processes.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, generator: torch.Generator, rank: int = 0, world_size: int = 1) -> None:
        self._generator, self._rank, self._world_size = generator, rank, world_size

    def timesteps(self, count: int, num_train_timesteps: int) -> Tensor:
        """Uniform timesteps `(count,)` in `[0, num_train_timesteps)`."""
        size = (count * self._world_size,)
        return self._own(
            torch.randint(num_train_timesteps, size, generator=self._generator, device=self._generator.device)
        )

    def noise(self, shape: torch.Size) -> Tensor:
        """Standard normal noise of a shape `(B, ...)`, float32."""
        size = (shape[0] * self._world_size, *shape[1:])
        return self._own(torch.randn(size, generator=self._generator, device=self._generator.device))

    def coins(self, count: int, probability: float) -> Tensor:
        """Which of `count` rows come up, `(count,)` bool."""
        size = (count * self._world_size,)
        return self._own(torch.rand(size, generator=self._generator, device=self._generator.device)) < probability

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn[self._rank :: self._world_size]
