"""What a federated run carries from round to round."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_methods.federated.clients import ClientStore, Federation, class_counts
from lit_methods.federated.clock import ProtocolClock
from lit_methods.federated.local_training import Models


class FederatedState:
    """Round number, personal models, and the clock; and which federation they belong to.

    Args:
        spill_folder: Folder for the personal models; None keeps them in memory.

    Attributes:
        round_number: Rounds that are done.
        personal: Each client's personal model, weights and buffers in one vector.
        buffers: Each client's buffers of the generic model, where these stay local.
        evaluated: Personal models of the validation or test that is running.
        clock: Both schedules.
        class_counts: Training examples of each class of each client, `(K, C)`; None before the first round.
    """

    def __init__(self, spill_folder: str | Path | None = None) -> None:
        self.round_number = 0
        self.personal = ClientStore(spill_folder)
        self.buffers = ClientStore()
        self.evaluated = ClientStore(None if spill_folder is None else Path(spill_folder) / "evaluated")
        self.clock = ProtocolClock()
        self.class_counts: Tensor | None = None
        self._fingerprint: str | None = None
        self._clients: int | None = None

    def meet(self, federation: Federation, num_classes: int) -> Tensor:
        """Returns the class counts of a federation, and refuses another one than the run began with.

        Warns of classes that nobody holds.

        Raises:
            ValueError: If personal models belong to other partitions, or the federation is empty or does not fit.
        """
        check_same_clients(federation, self._clients, self._fingerprint)
        if self.class_counts is None:
            if not len(federation):
                raise ValueError("The federation has no clients; pass num_clients of at least 1.")
            self.class_counts = class_counts(federation, num_classes)
            missing = (self.class_counts.sum(dim=0) == 0).nonzero().flatten().tolist()
            if missing:
                rank_zero_warn(
                    f"No client holds an example of the classes {missing} of num_classes={num_classes}, which no model "
                    "can learn: train on more examples, or pass a smaller num_classes."
                )
            self._fingerprint, self._clients = federation.fingerprint, len(federation)
        return self.class_counts

    def personal_models(self, clients: Sequence[int], received: Models) -> Models:
        """Personal models of some clients; what they received where they have none.

        Args:
            clients: The clients.
            received: One model, `(1, D)`.
        """
        return _models(self.personal, clients, received)

    def keep(self, clients: Sequence[int], models: Models) -> None:
        """Stores personal models."""
        _store(self.personal, clients, models)

    def keep_evaluated(self, clients: Sequence[int], models: Models) -> None:
        """Stores the models that are being evaluated."""
        _store(self.evaluated, clients, models)

    def evaluated_models(self, clients: Sequence[int], like: Models) -> Models:
        """Models that are being evaluated, on the device of `like (1, D)`."""
        return _models(self.evaluated, clients, like)

    def keep_own(self, rank: int, world_size: int) -> None:
        """Forgets the models of clients that live on other ranks, which a checkpoint brings to each."""
        for store in (self.personal, self.buffers):
            for client in list(store):
                if client % world_size != rank:
                    store.forget(client)

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors and plain containers."""
        return {
            "round": self.round_number,
            "personal": self.personal.state_dict(),
            "buffers": self.buffers.state_dict(),
            "clock": self.clock.state_dict(),
            "fingerprint": self._fingerprint,
            "clients": self._clients,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        self.round_number = int(state["round"])
        self.personal.load_state_dict(state["personal"])
        self.buffers.load_state_dict(state["buffers"])
        self.clock.load_state_dict(state["clock"])
        self._fingerprint, self._clients = state["fingerprint"], state.get("clients")
        self.class_counts = None


def check_same_clients(federation: Federation, clients: int | None, fingerprint: str | None) -> None:
    """Refuses other clients than a run began with.

    Args:
        federation: The clients now.
        clients: Their number in the run; None where it is not known.
        fingerprint: Their fingerprint in the run; None where it has met none.

    Raises:
        ValueError: If they are others.
    """
    if clients not in (None, len(federation)):
        raise ValueError(
            f"This run began with num_clients={clients}, but the data now have num_clients={len(federation)}: personal "
            f"models would belong to others. Pass num_clients={clients}, or begin a new run without ckpt_path."
        )
    if fingerprint not in (None, federation.fingerprint):
        raise ValueError(
            f"This run began with the clients {fingerprint!r}, but the data now are {federation.fingerprint!r}: their "
            "personal models would belong to others. Resume with the same data set, num_clients, partition, "
            "partition_seed and train_size."
        )


def _store(store: ClientStore, clients: Sequence[int], models: Models) -> None:
    for client, weights, buffers in zip(clients, models.weights, models.buffers, strict=True):
        store[client] = torch.cat([weights, buffers])


def _models(store: ClientStore, clients: Sequence[int], default: Models) -> Models:
    size = default.weights.shape[1]
    rows = store.rows(clients, torch.cat([default.weights[0], default.buffers[0]]))
    return Models(rows[:, :size], rows[:, size:])
