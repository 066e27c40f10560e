"""Which layers of a network are in training mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class TrainingModes:
    """Remembers the mode of each layer, which an evaluation changes but fine-tuning in it needs.

    Args:
        network: The network as training has it.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modes = _modes(network)

    @contextmanager
    def restored(self, network: nn.Module) -> Iterator[None]:
        """Gives the network its remembered modes for a while."""
        present = _modes(network)
        _set(network, self._modes)
        try:
            yield
        finally:
            _set(network, present)


def _modes(network: nn.Module) -> list[bool]:
    return [layer.training for layer in network.modules()]


def _set(network: nn.Module, modes: list[bool]) -> None:
    for layer, mode in zip(network.modules(), modes, strict=True):
        layer.training = mode
