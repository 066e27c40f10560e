"""The bilevel problem of one step: per-example training losses, a validation loss, and the parameters between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class ModesKept:
    """Context in which a module is in evaluation mode; on leaving, each submodule has its own mode back.

    Args:
        module: The module, submodules included.
        training: Mode inside the context.
    """

    def __init__(self, module: nn.Module, training: bool = False) -> None:
        self._modules = list(module.modules())
        self._training = training
        self._before: list[bool] = []

    def __enter__(self) -> None:
        """Switches every submodule."""
        self._before = [module.training for module in self._modules]
        for module in self._modules:
            module.training = self._training

    def __exit__(self, *exception: object) -> None:
        """Gives each submodule its mode back."""
        for module, training in zip(self._modules, self._before, strict=True):
            module.training = training


@contextmanager
def random_state_kept(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Context after which the random states of the CPU and of one device are what they were.

    Args:
        device: The device of the module.
        seed: Seed inside the context; None goes on from the present state.
    """
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.get_device_module(device).manual_seed(seed)
        yield


@dataclass
class Problem:
    """One step's training and validation loss as functions of a module's present parameters.

    Args:
        module: Owner of the parameters; both functions run it.
        train_losses: Loss of each example of the training batch, `() -> (B,)`; must not depend on random numbers.
        val_loss: Mean validation loss, `() -> ()`.
        groups: Trained parameters by learning rate, as an optimizer's groups hold them.
        reduce: Averages tensors over processes in place; None on one process.

    Raises:
        ValueError: If no parameter is trained.
    """

    module: nn.Module
    train_losses: Callable[[], Tensor]
    val_loss: Callable[[], Tensor]
    groups: Sequence[Mapping[str, Any]]
    reduce: Callable[[Sequence[Tensor]], None] | None = None
    parameters: list[nn.Parameter] = field(init=False)
    rates: list[float] = field(init=False)
    _is_copy: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.parameters, self.rates = [], []
        for group in self.groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    self.parameters.append(parameter)
                    self.rates.append(float(group["lr"]))
        if not self.parameters:
            raise ValueError("groups hold no parameter that requires a gradient, so that no weight has an effect.")

    def gradient(self, loss: Tensor, create_graph: bool = False) -> list[Tensor]:
        """Gradient of a scalar by the trained parameters, zero where unused; leaves `.grad` alone."""
        found = torch.autograd.grad(loss, self.parameters, create_graph=create_graph, materialize_grads=True)
        # torch 2.9 materializes unused parameters by zeros that require a gradient.
        return list(found) if create_graph else [gradient.detach() for gradient in found]

    @contextmanager
    def at(self, values: Sequence[Tensor]) -> Iterator[None]:
        """Context in which the parameters hold other values; the former storage returns bit for bit.

        Args:
            values: One tensor per trained parameter; `along` inside the context overwrites them.
        """
        before, outer = [parameter.data for parameter in self.parameters], self._is_copy
        try:
            self._hold(values)
            self._is_copy = True
            yield
        finally:
            self._hold(before)
            self._is_copy = outer

    @contextmanager
    def along(self, direction: Sequence[Tensor], length: float) -> Iterator[Callable[[], None]]:
        """Context in which the parameters are moved by `length` times a direction.

        What it yields moves them to the other side, by `-length`. Inside `at` that context's values are overwritten,
        which saves a copy of the parameters; elsewhere one is made.
        """
        steps, start = list(direction), [parameter.data for parameter in self.parameters]
        if self._is_copy:
            torch._foreach_add_(start, steps, alpha=length)
            values = start
        else:
            values = list(torch._foreach_add(start, steps, alpha=length))
        with self.at(values):
            yield lambda: torch._foreach_add_(values, steps, alpha=-2 * length)

    def _hold(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.data = value


class Evaluation(nn.Module):
    """A closure over a module as a module, for transforms that take parameters as arguments."""

    def __init__(self, module: nn.Module, function: Callable[[], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self) -> Tensor:
        """Value of the closure at the parameters in force."""
        return self.function()
