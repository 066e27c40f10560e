"""The default generator of a device, put back after use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def get_state(device: torch.device) -> Tensor:
    """State of the device's default generator."""
    module: Any = torch if device.type == "cpu" else torch.get_device_module(device)
    state: Tensor = module.get_rng_state() if device.type == "cpu" else module.get_rng_state(device)
    return state


def set_state(state: Tensor, device: torch.device) -> None:
    """Sets the state of the device's default generator."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def unmoved(device: torch.device, state: Tensor | None = None) -> Iterator[None]:
    """Leaves the device's default generator as it was before the block.

    Args:
        device: The generator's device.
        state: Where the generator stands at the beginning of the block; None for where it is.
    """
    before = get_state(device)
    if state is not None:
        set_state(state, device)
    try:
        yield
    finally:
        set_state(before, device)
