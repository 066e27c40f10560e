"""Refusals of arguments and trainer flags that rounds have no meaning for."""

import math

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch import nn


def check_arguments(
    num_classes: int,
    participation: float,
    clients_per_round: int | None,
    local_epochs: int,
    batch_size: int,
    buffer_policy: str,
    loss: nn.Module | None,
    seconds_per_step: float | None,
) -> None:
    """Checks the arguments of a `FederatedModule`.

    Raises:
        ValueError: If one is out of its range.
        TypeError: If `loss` has no `reduction` attribute.
    """
    for name, value in (("local_epochs", local_epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} must be at least 2.")
    if not 0 < participation <= 1:
        raise ValueError(f"participation={participation} must lie in (0, 1].")
    if clients_per_round is not None and clients_per_round < 1:
        raise ValueError(f"clients_per_round={clients_per_round} must be at least 1.")
    if buffer_policy not in ("aggregate", "local"):
        raise ValueError(f"buffer_policy={buffer_policy!r} must be 'aggregate' or 'local'.")
    if seconds_per_step is not None and not 0 <= seconds_per_step < math.inf:
        raise ValueError(f"seconds_per_step={seconds_per_step} must be at least 0, or None for what is measured.")
    if loss is not None and not hasattr(loss, "reduction"):
        raise TypeError(f"loss={type(loss).__name__} has no `reduction` attribute; pass a loss that follows torch.nn.")


def check_trainer(trainer: Trainer) -> None:
    """Checks the flags of a Trainer.

    Raises:
        MisconfigurationException: If it accumulates gradients or scales losses.
    """
    if trainer.accumulate_grad_batches != 1:
        raise MisconfigurationException(
            f"accumulate_grad_batches={trainer.accumulate_grad_batches} would average rounds; raise participation for "
            "more clients in a round."
        )
    if trainer.precision == "16-mixed":
        raise MisconfigurationException(
            "precision='16-mixed' scales one loss, but each client has its own; use 'bf16-mixed' or '32-true'."
        )


def cohort_size(clients: int, participation: float, clients_per_round: int | None) -> int:
    """Number of clients in a round: the given one, or else the given part of all.

    Raises:
        ValueError: If there are not as many clients.
    """
    if clients_per_round is None:
        return max(1, int(participation * clients + 1e-9))  # 0.29 * 100 is a little less than 29
    if clients_per_round > clients:
        raise ValueError(
            f"clients_per_round={clients_per_round} is more than the {clients} clients there are; lower it, or raise "
            "num_clients."
        )
    return clients_per_round
