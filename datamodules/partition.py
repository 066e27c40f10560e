"""How the examples of a data set are dealt out to clients, by their labels, and nothing else."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_methods.errors import check_above

_ATTEMPTS = 1000


def check_partition(parts: Sequence[Tensor], examples: int, min_samples: int) -> str | None:
    """Says what is wrong with a partition of `examples` positions; None if each is dealt once and no part is small."""
    dealt = torch.cat(list(parts)) if parts else torch.empty(0, dtype=torch.int64)
    if len(dealt) != examples or not torch.equal(dealt.sort().values, torch.arange(examples)):
        return f"deals {len(set(dealt.tolist()))} of {examples} examples, {len(dealt)} times in all"
    small = [client for client, part in enumerate(parts) if len(part) < min_samples]
    return f"leaves clients {small[:5]} with fewer than min_samples={min_samples} examples" if small else None


class Partition(ABC):
    """A rule that deals examples to clients."""

    min_samples: int = 1

    @abstractmethod
    def deal(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """One attempt: the positions that each client receives."""

    def split(self, labels: Tensor, num_clients: int, seed: int) -> list[Tensor]:
        """Deals the examples; attempts that leave a client with too few are drawn anew.

        Args:
            labels: Classes `(N,)`.
            num_clients: Number K of clients.
            seed: Seed of all draws; the global random state is neither read nor changed.

        Returns:
            Ascending positions of each client's examples, K int64 tensors that hold each position once.

        Raises:
            ValueError: If there are fewer examples than the clients need, or no attempt succeeds.
        """
        if num_clients < 1:
            raise ValueError(f"num_clients={num_clients} must be at least 1.")
        if len(labels) < num_clients * self.min_samples:
            raise ValueError(
                f"num_clients={num_clients} with min_samples={self.min_samples} needs "
                f"{num_clients * self.min_samples} examples, but there are {len(labels)}."
            )
        rng = np.random.default_rng(seed)
        problem: str | None = None
        for _ in range(_ATTEMPTS):
            dealt = self.deal(labels.numpy(), num_clients, rng)
            parts = [torch.from_numpy(np.sort(np.asarray(part, dtype=np.int64))) for part in dealt]
            problem = check_partition(parts, len(labels), self.min_samples)
            if problem is None:
                return parts
        raise ValueError(
            f"{self} {problem}, in each of {_ATTEMPTS} attempts; take fewer clients, "
            f"{'a smaller min_samples, ' if self.min_samples > 1 else ''}or less skew."
        )


@dataclass(frozen=True)
class IIDPartition(Partition):
    """Random parts of equal size, up to one example.

    Attributes:
        min_samples: Fewest examples of a client.
    """

    min_samples: int = 1

    def deal(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """See `Partition.deal`."""
        return np.array_split(rng.permutation(len(labels)), num_clients)


@dataclass(frozen=True)
class BernoulliDirichletPartition(Partition):
    """The two steps of Chen et al. 2023 (and FedCorr): which classes a client has, then how many of each.

    A client has a class with probability `p`; each example of a class goes to one of its clients, drawn by shares
    from a symmetric Dirichlet distribution. A client without any class, and a class without any client, are drawn
    anew. Smaller `p`: fewer classes for each; smaller `alpha`: more uneven shares; `p = 1` is `DirichletPartition`.

    Attributes:
        p: Probability that a client has a class, in (0, 1].
        alpha: Concentration of the shares.
        min_samples: Fewest examples of a client.

    Raises:
        ValueError: If `p` or `alpha` is out of its range.
    """

    p: float = 0.7
    alpha: float = 10.0
    min_samples: int = 1

    def __post_init__(self) -> None:
        """Refuses numbers out of range."""
        if not 0 < self.p <= 1:
            raise ValueError(f"p={self.p} must lie in (0, 1].")
        check_above("alpha", self.alpha)

    def holders(self, num_clients: int, num_classes: int, rng: np.random.Generator) -> np.ndarray:
        """Which client has which class, `(K, C)` bool: no empty row, no empty column.

        Raises:
            ValueError: If `p` is too small for that.
        """
        has = rng.random((num_clients, num_classes)) < self.p
        for _ in range(_ATTEMPTS):
            if has.any(axis=1).all() and has.any(axis=0).all():
                return has
            empty = ~has.any(axis=1)
            has[empty] = rng.random((empty.sum(), num_classes)) < self.p
            nobody = ~has.any(axis=0)
            has[:, nobody] = rng.random((num_clients, nobody.sum())) < self.p
        raise ValueError(f"p={self.p} leaves clients without a class in each of {_ATTEMPTS} draws; take a larger p.")

    def deal(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """See `Partition.deal`."""
        classes = np.unique(labels)
        has = self.holders(num_clients, len(classes), rng)
        owner = np.empty(len(labels), dtype=np.int64)
        for column, label in enumerate(classes):
            clients = np.flatnonzero(has[:, column])
            shares = rng.dirichlet(np.full(len(clients), self.alpha))
            where = np.flatnonzero(labels == label)
            owner[where] = rng.choice(clients, size=len(where), p=shares)
        return [np.flatnonzero(owner == client) for client in range(num_clients)]


@dataclass(frozen=True)
class DirichletPartition(Partition):
    """The examples of each class are shared out by a symmetric Dirichlet distribution over all clients.

    Attributes:
        alpha: Concentration; small values give each client few classes and uneven sizes.
        min_samples: Fewest examples of a client.

    Raises:
        ValueError: If `alpha` is not above 0, or not finite.
    """

    alpha: float = 0.5
    min_samples: int = 1

    def __post_init__(self) -> None:
        """Refuses numbers out of range."""
        check_above("alpha", self.alpha)

    def deal(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """See `Partition.deal`."""
        return BernoulliDirichletPartition(1.0, self.alpha).deal(labels, num_clients, rng)


@dataclass(frozen=True)
class PathologicalPartition(Partition):
    """Each client has the same number of classes, and equal parts of each with those that share it.

    Attributes:
        classes_per_client: Number of classes.
        min_samples: Fewest examples of a client.

    Raises:
        ValueError: If `classes_per_client` is below 1.
    """

    classes_per_client: int = 2
    min_samples: int = 1

    def __post_init__(self) -> None:
        """Refuses numbers out of range."""
        check_above("classes_per_client", self.classes_per_client)

    def deal(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """See `Partition.deal`.

        Raises:
            ValueError: If there are too few classes, or too few clients to hold them all.
        """
        classes = np.unique(labels)
        if self.classes_per_client > len(classes):
            raise ValueError(f"classes_per_client={self.classes_per_client} is more than the {len(classes)} classes.")
        if num_clients * self.classes_per_client < len(classes):
            raise ValueError(
                f"num_clients={num_clients} with classes_per_client={self.classes_per_client} leaves classes that "
                f"nobody holds: there are {len(classes)}."
            )
        held: list[list[int]] = [[] for _ in range(num_clients)]
        load = np.zeros(len(classes), dtype=np.int64)
        for client in rng.permutation(num_clients):
            # the classes held least often so far, ties at random: every class finds a holder
            chosen = np.lexsort((rng.random(len(classes)), load))[: self.classes_per_client]
            load[chosen] += 1
            held[client] = chosen.tolist()
        parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
        for column, label in enumerate(classes):
            clients = [client for client in range(num_clients) if column in held[client]]
            pieces = np.array_split(rng.permutation(np.flatnonzero(labels == label)), len(clients))
            for client, piece in zip(clients, pieces, strict=True):
                parts[client].append(piece)
        return [np.concatenate(part) for part in parts]


@dataclass(frozen=True)
class ShardPartition(Partition):
    """McMahan et al. 2017: examples sorted by label, cut into equal shards, the shards dealt at random.

    Attributes:
        shards_per_client: Shards of a client.
        min_samples: Fewest examples of a client.

    Raises:
        ValueError: If `shards_per_client` is below 1.
    """

    shards_per_client: int = 2
    min_samples: int = 1

    def __post_init__(self) -> None:
        """Refuses numbers out of range."""
        check_above("shards_per_client", self.shards_per_client)

    def deal(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """See `Partition.deal`."""
        order = np.lexsort((rng.random(len(labels)), labels))
        shards = np.array_split(order, num_clients * self.shards_per_client)
        dealt = rng.permutation(len(shards)).reshape(num_clients, self.shards_per_client)
        return [np.concatenate([shards[i] for i in row]) for row in dealt]


@dataclass(frozen=True, eq=False)
class ColumnPartition(Partition):
    """Natural clients: examples with the same value of a column belong together.

    Attributes:
        values: The column, one value for each example, such as a writer's name.
        min_samples: Fewest examples of a client.
    """

    values: Sequence[Any]
    min_samples: int = 1

    def deal(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """See `Partition.deal`.

        Raises:
            ValueError: If the values are not one for each example or not as many different ones as clients.
        """
        if len(self.values) != len(labels):
            raise ValueError(f"values has {len(self.values)} entries for {len(labels)} examples.")
        names, client = np.unique(np.asarray(self.values), return_inverse=True)
        if len(names) != num_clients:
            raise ValueError(f"num_clients={num_clients}, but the column has {len(names)} different values.")
        return [np.flatnonzero(client == i) for i in range(num_clients)]


@dataclass(frozen=True, eq=False)
class FlowerPartition(Partition):
    """Any partitioner object of the package `flwr-datasets`.

    Attributes:
        partitioner: The object; it is given a data set with the columns `label` and `position`.
        min_samples: Fewest examples of a client.
    """

    partitioner: Any
    min_samples: int = 1

    def deal(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """See `Partition.deal`.

        Raises:
            ValueError: If the partitioner makes another number of parts.
        """
        from datasets import Dataset

        if getattr(self.partitioner, "_dataset", None) is None:
            self.partitioner.dataset = Dataset.from_dict({"label": labels, "position": np.arange(len(labels))})
        if self.partitioner.num_partitions != num_clients:
            raise ValueError(f"num_clients={num_clients}, but the partitioner makes {self.partitioner.num_partitions}.")
        return [np.asarray(self.partitioner.load_partition(i)["position"]) for i in range(num_clients)]
