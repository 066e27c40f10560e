"""Local training of K clients that start from K models: what it is, and the interface of those that do it."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_methods.federated.clients import ClientDataset
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.penalties import Penalty


class Models(NamedTuple):
    """K models of one architecture.

    Attributes:
        weights: Trainable values `(K, D)`.
        buffers: Values of buffers `(K, b)`, float32.
    """

    weights: Tensor
    buffers: Tensor

    def rows(self, rows: slice | Tensor) -> "Models":
        """Some of the models."""
        return Models(self.weights[rows], self.buffers[rows])


@dataclass(frozen=True)
class LocalStage:
    """What each client does with its model in one stage of a round.

    Attributes:
        epochs: Passes over the client's examples.
        batch_size: Examples in a batch; the last one of an epoch may be smaller.
        optimizer: Makes the optimizer, new for each stage; it must treat each value alike, as SGD and Adam do.
        per_sample_loss: Losses `(B,)` of logits `(B, C)` and labels `(B,)`; their mean over a batch is minimized.
        penalties: Terms that are added to it.
        trained: Which of the D values change, `(D,)`; None for all.
        logit_offsets: Added to a client's logits, `(K, C)`; None adds nothing.
        forward: Keyword arguments of the network's `forward`.
    """

    epochs: int
    batch_size: int
    optimizer: Callable[[list[Tensor]], Optimizer]
    per_sample_loss: Callable[[Tensor, Tensor], Tensor]
    penalties: Sequence[Penalty] = ()
    trained: Tensor | None = None
    logit_offsets: Tensor | None = None
    forward: Mapping[str, Any] = field(default_factory=dict)


class LocalResult(NamedTuple):
    """Outcome of a stage for K clients.

    Attributes:
        models: The trained models.
        loss: Mean training loss over the steps of each client, `(K,)`, without penalties.
        gradient_norm: Norm of the loss's gradient, without penalties, at each client's last step, `(K,)`.
        steps: Steps that each client took.
        seconds: Time that each client took; shares of a common time where clients train together.
    """

    models: Models
    loss: Tensor
    gradient_norm: Tensor
    steps: list[int]
    seconds: list[float]


class LocalBackend(ABC):
    """Something that trains and evaluates K models of one network."""

    @abstractmethod
    def train(
        self,
        network: nn.Module,
        layout: ModelLayout,
        stage: LocalStage,
        start: Models,
        data: Sequence[ClientDataset],
        seeds: Sequence[int],
    ) -> LocalResult:
        """Trains K models, each on the data of one client; the network itself stays as it is.

        Args:
            network: The architecture, in training mode, and whatever is frozen in it.
            layout: Its layout.
            stage: What to do.
            start: Models to start from.
            data: Data of each client.
            seeds: Seed of each client's order of examples, and of whatever is random in the network or the data.

        Raises:
            ValueError: If the backend can't train this network or these data.
        """

    @abstractmethod
    def predict(
        self, network: nn.Module, layout: ModelLayout, models: Models, inputs: Tensor, forward: Mapping[str, Any]
    ) -> Tensor:
        """Logits `(K, B, C)` of K models in evaluation mode for the same inputs `(B, ...)`."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know to repeat this backend's arithmetic."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned: nothing, unless a backend has a choice to remember."""
        del state


def per_sample(loss: nn.Module) -> nn.Module:
    """A copy of a loss that does not reduce."""
    unreduced = copy.copy(loss)
    unreduced.reduction = "none"  # type: ignore[assignment]  # torch types every attribute as a tensor
    return unreduced


def batch_table(examples: int, width: int, stage: LocalStage, seed: int) -> Tensor:
    """Positions of the examples in each batch of a stage: a new permutation for each epoch, from the seed alone.

    Args:
        examples: Number N of examples.
        width: Places of a batch, `min(batch_size, N)` at least.
        stage: Epochs and batch size.
        seed: Seed of the permutations.

    Returns:
        Positions `(steps, width)`, -1 where a batch has fewer examples.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = -(-examples // stage.batch_size)
    orders = torch.full((stage.epochs, batches * stage.batch_size), -1)
    for epoch in range(stage.epochs):
        orders[epoch, :examples] = torch.randperm(examples, generator=generator)
    return orders.view(stage.epochs * batches, stage.batch_size)[:, :width]


def batch_order(examples: int, stage: LocalStage, seed: int) -> list[Tensor]:
    """The batches of `batch_table` as a list, without its padding."""
    return [row[row >= 0] for row in batch_table(examples, stage.batch_size, stage, seed)]


def read_all(data: ClientDataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """All examples of a client `(N, ...)` with their labels `(N,)` on a device."""
    inputs, labels = data.__getitems__(range(len(data)))
    return inputs.to(device), labels.to(device)


def uncached_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """The surrounding autocast without its cache of cast weights, which would outlive an optimizer step in place."""
    return cast(
        AbstractContextManager[Any],
        torch.autocast(
            device.type,
            dtype=torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
            cache_enabled=False,
        ),
    )


def batches_of(data: ClientDataset, order: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a stage; data that never change are read once."""
    if data.random:
        for chosen in order:
            inputs, labels = data.__getitems__(chosen.tolist())
            yield inputs.to(device), labels.to(device)
    else:
        inputs, labels = read_all(data, device)
        for chosen in order:
            where = chosen.to(device)
            yield inputs[where], labels[where]
