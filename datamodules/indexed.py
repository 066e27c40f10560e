"""A data set whose examples carry their own position."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset


class IndexedDataset(Dataset[Any]):
    """A data set with each example's position beside it: last in a tuple, under the key "index" in a dict.

    Where the wrapped data set serves finished batches by `__getitems__`, as `ImageDataset` does, the batch gets
    its positions as one tensor `(B,)` int64; its collate function serves here too.

    Args:
        dataset: Map-style data set of tuples or dicts.

    Raises:
        TypeError: If the data set has no length, or, when it is read, if an example is neither a tuple nor a dict.
        ValueError: When it is read, if a dict has the key "index" already.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(f"dataset={type(dataset).__name__} has no positions; pass a map-style data set.")
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Example at `index`, with the index."""
        return self._with(self.dataset[index], index)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Examples at `indices` with their positions: a list, or the wrapped data set's own finished batch."""
        batched = getattr(self.dataset, "__getitems__", None)
        found = [self.dataset[index] for index in indices] if batched is None else batched(indices)
        if isinstance(found, list):
            return [self._with(example, index) for example, index in zip(found, indices, strict=True)]
        return self._with(found, torch.as_tensor(indices, dtype=torch.int64))

    def _with(self, example: Any, index: Any) -> Any:
        if isinstance(example, dict):
            if "index" in example:
                raise ValueError("Examples have a key 'index' already; rename it before wrapping in IndexedDataset.")
            return {**example, "index": index}
        if isinstance(example, tuple):
            return (*example, index)
        raise TypeError(f"Examples are {type(example).__name__}; IndexedDataset takes tuples and dicts.")
