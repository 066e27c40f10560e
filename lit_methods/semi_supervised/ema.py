"""An exponential moving average of a network as a frozen network of its own."""

import copy

import torch
from torch import Tensor, nn


class ExponentialMovingAverage(nn.Module):
    """A frozen copy that follows a network: `e <- d e + (1 - d) theta` with `d = min(decay, (1 + n) / (10 + n))`.

    `n` counts the updates so far, so that the start is forgotten quickly. Buffers, such as BatchNorm's statistics,
    are copied. The copy is part of the owner's state dict and always in evaluation mode.

    Args:
        network: The network to follow.
        decay: Upper end of the decay, in [0, 1).

    Raises:
        ValueError: If `decay` is outside [0, 1).
    """

    updates: Tensor

    def __init__(self, network: nn.Module, decay: float = 0.9999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay={decay} must lie in [0, 1).")
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.register_buffer("updates", torch.zeros(()))
        self.eval()

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Moves the copy towards `network`; no value is read back from the device."""
        followed = [p.detach() for p in network.parameters()]
        averaged = [p.detach() for p in self.network.parameters()]
        step = 1 - torch.clamp((1 + self.updates) / (10 + self.updates), max=self.decay)
        difference = list(torch._foreach_sub(followed, averaged))
        torch._foreach_mul_(difference, step)
        torch._foreach_add_(averaged, difference)
        for own, other in zip(self.network.buffers(), network.buffers(), strict=True):
            own.copy_(other)
        self.updates += 1

    def train(self, mode: bool = True) -> "ExponentialMovingAverage":
        """Stays in evaluation mode."""
        return super().train(False)
