"""The validation batches that the weights learn from, in an order of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_methods.data_manipulation.problem import random_state_kept


def batch_mover(trainer: Trainer, device: torch.device) -> Callable[[Any], Any]:
    """Does to a batch what the Trainer does to its own: the precision's dtype, the transfer hooks, the device."""
    return lambda batch: trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch), device)


class ValidationStream:
    """Batches of a loader without end, which a resumed run goes on with.

    A short loader is read once and its batches are kept on the device; a longer one is read again in each round, its
    random order seeded by the round. The global random state is neither used nor moved.

    Args:
        loader: Yields batches; read anew by each `iter`.
        to_device: Moves a batch to where the module is.
        device: The module's device.
        seed: Seed of the rounds.
        kept_batches: Greatest number of batches that are kept.

    Raises:
        ValueError: If the loader yields nothing, or can be read once only and holds more than the kept batches.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        to_device: Callable[[Any], Any],
        device: torch.device,
        seed: int = 0,
        kept_batches: int = 8,
    ) -> None:
        self._loader, self._to_device, self._device, self._seed = loader, to_device, device, seed
        self.round, self.position = 0, 0
        self._iterator: Iterator[Any] | None = None
        self._kept: list[Any] | None = None
        first: list[Any] = []
        with random_state_kept(device, seed):
            for batch in loader:
                first.append(batch)
                if len(first) > kept_batches:
                    break
        if not first:
            raise ValueError(
                "val_dataloader yields no batch, so that no weight can be learned. Hold out some clean examples."
            )
        if len(first) <= kept_batches:
            self._kept = [to_device(batch) for batch in first]
        elif isinstance(loader, Iterator):
            raise ValueError(
                f"val_dataloader={type(loader).__name__} can be read once only, but its batches are needed in each"
                " round. Pass a DataLoader, or a list of batches."
            )

    def next(self) -> Any:
        """The next batch, on the device."""
        if self._kept is not None:
            batch = self._kept[self.position]
            self.position = (self.position + 1) % len(self._kept)
            return batch
        with random_state_kept(self._device):
            try:
                self._iterator = self._iterator or self._start()
                batch = next(self._iterator)
            except StopIteration:
                self.round, self.position = self.round + 1, 0
                self._iterator = self._start()
                batch = next(self._iterator)
        self.position += 1
        return self._to_device(batch)

    def _start(self) -> Iterator[Any]:
        with random_state_kept(self._device, self._seed + self.round):
            iterator = iter(self._loader)
            for _ in range(self.position):
                next(iterator)
            first = next(iterator)  # a random sampler draws its order here
        return chain([first], iterator)

    def state_dict(self) -> dict[str, int]:
        """Round and position."""
        return {"round": self.round, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on at a saved position."""
        self.round, self.position = int(state["round"]), int(state["position"])
        self._iterator = None
