"""What clients keep and what they train on: models across rounds, and streams of random numbers of their own."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class ClientDataset(Protocol):
    """One client's examples: any indexable data set with its labels.

    Attributes:
        labels: Classes `(N,)`, int64.
        random: Whether reading an example twice can give two results, as with random augmentation.
    """

    labels: Tensor
    random: bool

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]: ...


class Federation(Protocol):
    """All clients' data.

    Attributes:
        fingerprint: Text that two federations share only if they hold the same examples in the same places.
    """

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, client: int) -> ClientDataset: ...


def stream_seed(*labels: int | str) -> int:
    """Returns the seed of the random stream that is called by these labels, in [0, 2**63)."""
    digest = hashlib.blake2b("/".join(map(str, labels)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def class_counts(federation: Federation, num_classes: int) -> Tensor:
    """How many training examples of each class each client has, `(K, C)` int64.

    Raises:
        ValueError: If a client has none, or a label is out of range.
    """
    rows = []
    for client in range(len(federation)):
        labels = federation[client].labels
        if not len(labels):
            raise ValueError(
                f"Client {client} has no training example; use a partition with min_samples of at least 1."
            )
        if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
            raise ValueError(
                f"Client {client} has the labels {int(labels.min())} to {int(labels.max())}, which do not fit "
                f"num_classes={num_classes}; raise it, or number the classes from 0."
            )
        rows.append(torch.bincount(labels, minlength=num_classes))
    return torch.stack(rows)


class ClientStore:
    """Vectors that clients keep across rounds, created when a client first has one; on the CPU or on disk.

    Args:
        folder: Folder of a memory-mapped file for each client, which the operating system pages in and out; None
            keeps all vectors in memory.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._rows: dict[int, Tensor | Path] = {}

    def __len__(self) -> int:
        """Number of clients that have a vector."""
        return len(self._rows)

    def __contains__(self, client: int) -> bool:
        """Whether a client has a vector."""
        return client in self._rows

    def __iter__(self) -> Iterator[int]:
        """Clients that have a vector, ascending."""
        return iter(sorted(self._rows))

    def __getitem__(self, client: int) -> Tensor:
        """A client's vector `(D,)`."""
        row = self._rows[client]
        return torch.from_numpy(np.load(row)) if isinstance(row, Path) else row

    def __setitem__(self, client: int, vector: Tensor) -> None:
        """Replaces a client's vector by a copy of the given one."""
        vector = vector.detach().to("cpu", copy=True)
        if self.folder is None:
            self._rows[client] = vector
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"client_{client}.npy"
        np.save(path, vector.numpy())
        self._rows[client] = path

    def rows(self, clients: Iterable[int], default: Tensor) -> Tensor:
        """Vectors `(K, D)` of some clients on the device of `default (D,)`, which stands in where there is none."""
        return torch.stack([self[i].to(default.device) if i in self else default for i in clients])

    def forget(self, client: int) -> None:
        """Drops a client's vector; its file stays, for the process that has the client."""
        del self._rows[client]

    def clear(self) -> None:
        """Forgets all vectors and deletes their files."""
        for row in self._rows.values():
            if isinstance(row, Path):
                row.unlink(missing_ok=True)
        self._rows.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """All vectors `(P, D)` and the clients they belong to `(P,)`; a mapped file where vectors are on disk."""
        if not self._rows:
            return {}
        vectors = self._room()
        for place, client in enumerate(self):
            vectors[place] = self[client]
        return {"clients": torch.tensor(list(self)), "vectors": vectors}

    def _room(self) -> Tensor:
        first = self[next(iter(self))]
        shape = (len(self), *first.shape)
        if self.folder is None:
            return first.new_empty(shape)
        # A file without a name: other processes save into the same folder, and nothing is left behind.
        with tempfile.TemporaryFile(dir=self.folder) as file:
            return torch.from_numpy(np.memmap(file, first.numpy().dtype, "w+", shape=shape))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over the vectors of `state_dict` in place of its own."""
        self.clear()
        if state:
            for client, vector in zip(state["clients"].tolist(), state["vectors"], strict=True):
                self[client] = vector
