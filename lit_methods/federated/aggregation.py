"""Who takes part in a round, and what the server makes of the updates it gets."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lit_methods.federated.clients import stream_seed


class Aggregation(Protocol):
    """Draws the clients of each round and combines their updates; `FederatedModule.aggregation` holds one.

    A callback may put another in its place, such as one that adds noise: it need not inherit from this.
    """

    def sample(self, clients: int, size: int, round_number: int, seed: int) -> list[int]:
        """Clients of a round, ascending.

        Args:
            clients: Number of clients.
            size: Clients wanted in a round.
            round_number: Rounds before this one.
            seed: Seed of the run.
        """
        ...

    def combine(self, updates: Tensor, shares: Tensor, clients: Sequence[int]) -> Tensor:
        """The step `(D,)` of the server's model, before the server's optimizer.

        Args:
            updates: Sent models minus the server's, `(K, D)`; 0 where values are not exchanged.
            shares: Each client's part of the round's examples, `(K,)`; they sum to 1 over all ranks.
            clients: Numbers of the clients.
        """
        ...


class WeightedMean:
    """FedAvg's: clients drawn without replacement, updates averaged by numbers of examples."""

    def sample(self, clients: int, size: int, round_number: int, seed: int) -> list[int]:
        """See `Aggregation.sample`: drawn from the seed and the round alone."""
        generator = torch.Generator().manual_seed(stream_seed(seed, round_number, "cohort"))
        return sorted(torch.randperm(clients, generator=generator)[:size].tolist())

    def combine(self, updates: Tensor, shares: Tensor, clients: Sequence[int]) -> Tensor:
        """See `Aggregation.combine`."""
        return shares @ updates
