"""Any labelled image datamodule, dealt out to clients."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from .dataset import ImageDataset
from .images import ImageDataModule
from .partition import BernoulliDirichletPartition, Partition


class ClientSubset:
    """One client's part of a data set.

    Args:
        dataset: The whole set, an `ImageDataset` or anything with `labels` and `__getitems__` that returns a batch.
        positions: The client's examples, ascending.

    Attributes:
        labels: Classes of the client's examples `(N,)`.
        random: Whether reading an example twice can give two results.
    """

    def __init__(self, dataset: ImageDataset, positions: Tensor) -> None:
        self.dataset, self.positions = dataset, positions
        self.labels = dataset.labels[positions]
        self.random = getattr(dataset, "transform", None) is not None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.positions)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Batch `(inputs (B, ...), labels (B,))`."""
        return self.dataset.__getitems__(self.positions[torch.as_tensor(indices)])  # type: ignore[arg-type]  # torch's Dataset promises no length and no batches


class ClientPartition:
    """All clients' parts of a data set.

    Args:
        dataset: The whole set.
        positions: Positions of each client's examples.

    Attributes:
        fingerprint: Number of clients and a hash of who holds which example.
    """

    def __init__(self, dataset: ImageDataset, positions: Sequence[Tensor]) -> None:
        self.clients = [ClientSubset(dataset, part) for part in positions]
        digest = hashlib.blake2b(digest_size=8)
        for client in self.clients:
            digest.update(len(client).to_bytes(8, "big"))
            digest.update(client.positions.numpy().tobytes())
            digest.update(client.labels.numpy().tobytes())
        self.fingerprint = f"{len(self.clients)} clients, {digest.hexdigest()}"

    def __len__(self) -> int:
        """Number of clients."""
        return len(self.clients)

    def __getitem__(self, client: int) -> ClientSubset:
        """One client's examples."""
        return self.clients[client]

    def class_counts(self, num_classes: int) -> Tensor:
        """Examples of each class of each client, `(K, C)`."""
        return torch.stack([torch.bincount(client.labels, minlength=num_classes) for client in self.clients])


class FederatedBatch(NamedTuple):
    """A batch of a global test set.

    Attributes:
        inputs: Examples `(B, ...)`.
        labels: Classes `(B,)`.
        members: Whether each example is in each client's local test set, `(B, K)` bool.
        federation: All clients' training data.
    """

    inputs: Tensor
    labels: Tensor
    members: Tensor
    federation: ClientPartition


class Rounds:
    """An epoch of rounds: the same federation, a few times. It is no `DataLoader`, so no sampler is put into it.

    It has a state, so that a run that is resumed in the middle of an epoch does the rounds that are left.
    """

    def __init__(self, federation: ClientPartition, rounds: int) -> None:
        self.federation, self.rounds = federation, rounds
        self._start = self._given = 0

    def __len__(self) -> int:
        """Number of rounds."""
        return self.rounds

    def __iter__(self) -> Iterator[ClientPartition]:
        """The federation, once for each round that is left."""
        start, self._start = self._start, 0
        for done in range(start, self.rounds):
            self._given = done + 1
            yield self.federation

    def state_dict(self) -> dict[str, int]:
        """Rounds of this epoch that were begun."""
        return {"given": self._given % self.rounds}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lets the next epoch begin after the rounds that were done."""
        self._start = self._given = state["given"]


class FederatedBatches:
    """A global test set in batches, whole in each process, with the membership of local test sets.

    Args:
        dataset: The test set.
        members: Whether each example is in each client's local test set, `(N, K)` bool.
        federation: All clients' training data.
        batch_size: Examples in a batch.
    """

    def __init__(self, dataset: ImageDataset, members: Tensor, federation: ClientPartition, batch_size: int) -> None:
        self.dataset, self.members, self.federation, self.batch_size = dataset, members, federation, batch_size

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[FederatedBatch]:
        """The batches, in the order of the test set."""
        for chosen in torch.split(torch.arange(len(self.dataset)), self.batch_size):
            inputs, labels = self.dataset.__getitems__(chosen)  # type: ignore[arg-type]  # positions as a tensor
            yield FederatedBatch(inputs=inputs, labels=labels, members=self.members[chosen], federation=self.federation)


def local_test_sets(class_counts: Tensor, test_labels: Tensor, seed: int) -> Tensor:
    """Draws for each client a test set that follows its training distribution.

    Of class `j`, client `i` receives `floor(n_ij * N_test / N_train)` different examples of the global test set,
    independently of the others, as in the released code of Chen et al. 2023.

    Args:
        class_counts: Training examples of each class of each client, `(K, C)`.
        test_labels: Classes of the global test set `(N,)`.
        seed: Seed of the draws.

    Returns:
        Membership `(N, K)` bool; a column is empty where a client has too few training examples.
    """
    members = torch.zeros(len(test_labels), len(class_counts), dtype=torch.bool)
    wanted = class_counts * len(test_labels) // class_counts.sum()
    pools = [np.flatnonzero(test_labels.numpy() == label) for label in range(class_counts.shape[1])]
    for client, row in enumerate(wanted.tolist()):
        rng = np.random.default_rng([seed, client])
        for pool, count in zip(pools, row, strict=True):
            members[rng.permutation(pool)[:count], client] = True
    return members


class FederatedDataModule(LightningDataModule):
    """The training set of another datamodule dealt out to clients, and its test set for all.

    A training batch is the whole federation: which clients take part is the method's choice. Validation and test
    batches cover the global test set and say which examples are in which client's local test set. Prediction gives
    `(inputs, labels)` of the test set.

    Args:
        source: Datamodule of the images; its `val_fraction` is held out before the examples are dealt out, its
            `train_transform` is applied to clients' examples.
        num_clients: Number K of clients.
        partition: How the examples are dealt out; None for Bernoulli-Dirichlet with p = 0.7, alpha = 10.
        partition_seed: Seed of the partition and of the local test sets.
        rounds_per_epoch: Rounds in an epoch, after each of which is validated.
        validate_on: Whether rounds are validated on the test set, as is the custom of the field, or on what the
            source holds out of the training set: choose hyperparameters on the latter.
        train_size: Use only so many training examples, drawn at random before the split; None uses all. The rest is
            added to no other set.
        eval_batch_size: Examples in a batch of validation, test and prediction.

    Attributes:
        federation: The clients; None before `setup("fit")`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        source: ImageDataModule,
        num_clients: int = 20,
        partition: Partition | None = None,
        partition_seed: int = 0,
        rounds_per_epoch: int = 1,
        validate_on: str = "test",
        train_size: int | None = None,
        eval_batch_size: int = 512,
    ) -> None:
        super().__init__()
        for name, value in (
            ("num_clients", num_clients),
            ("rounds_per_epoch", rounds_per_epoch),
            ("eval_batch_size", eval_batch_size),
            ("train_size", 1 if train_size is None else train_size),
        ):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if validate_on not in ("test", "held_out"):
            raise ValueError(f"validate_on={validate_on!r} must be 'test' or 'held_out'.")
        if validate_on == "held_out" and source.val_fraction == 0:
            raise ValueError("validate_on='held_out' needs a source with val_fraction above 0.")
        self.source, self.num_clients = source, num_clients
        self.partition = BernoulliDirichletPartition() if partition is None else partition
        self.partition_seed, self.rounds_per_epoch = partition_seed, rounds_per_epoch
        self.validate_on, self.train_size, self.eval_batch_size = validate_on, train_size, eval_batch_size
        self.federation: ClientPartition | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.source.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.source.class_names

    def prepare_data(self) -> None:
        """Lets the source download what it needs."""
        self.source.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Loads the source and deals its training set out; every stage needs both.

        Raises:
            ValueError: If the partition is impossible.
        """
        self.source.setup(None)
        if self.federation is not None:
            return
        dataset = self.source.train_set
        if dataset is None:
            raise RuntimeError(f"{type(self.source).__name__} has no training set after setup.")
        labels = dataset.labels
        positions = torch.arange(len(labels))
        if self.train_size is not None:
            if self.train_size > len(labels):
                raise ValueError(f"train_size={self.train_size} is more than the {len(labels)} training examples.")
            rng = np.random.default_rng([self.partition_seed, 1])
            positions = torch.from_numpy(np.sort(rng.permutation(len(labels))[: self.train_size]))
        parts = self.partition.split(labels[positions], self.num_clients, self.partition_seed)
        self.federation = ClientPartition(dataset, [positions[part] for part in parts])

    def train_dataloader(self) -> Rounds:
        """The rounds of an epoch."""
        return Rounds(self._dealt(), self.rounds_per_epoch)

    def val_dataloader(self) -> FederatedBatches:
        """The global test set, or what is held out, with local test sets."""
        return self._batches(self.source.test_set if self.validate_on == "test" else self.source.val_set)

    def test_dataloader(self) -> FederatedBatches:
        """The global test set with local test sets."""
        return self._batches(self.source.test_set)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Inputs and labels of the global test set."""
        self._dealt()
        return self.source.predict_dataloader()

    def _batches(self, dataset: ImageDataset | None) -> FederatedBatches:
        federation = self._dealt()
        if dataset is None:
            raise RuntimeError(f"{type(self.source).__name__} has no such set after setup.")
        counts = federation.class_counts(self.num_classes)
        members = local_test_sets(counts, dataset.labels, self.partition_seed)
        return FederatedBatches(
            dataset=dataset, members=members, federation=federation, batch_size=self.eval_batch_size
        )

    def _dealt(self) -> ClientPartition:
        if self.federation is None:
            raise RuntimeError("FederatedDataModule is not set up; call setup('fit') first.")
        return self.federation
