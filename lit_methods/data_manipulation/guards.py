"""What learned weighting cannot work with, refused in a sentence, and how batches are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

Reader = Callable[[Any], Tensor]
LABEL_KEYS = ("label", "labels")


def validation_loader(trainer: Trainer, given: Iterable[Any] | None, remedy: str) -> Iterable[Any]:
    """The given loader, or the Trainer's only validation loader.

    Raises:
        MisconfigurationException: If the Trainer has none, or several.
    """
    if given is not None:
        return given
    found: Any = None
    try:
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        found = trainer.val_dataloaders
    except MisconfigurationException:
        pass  # Lightning's sentence about a missing method of the module; ours names the argument
    if not isinstance(found, DataLoader):
        raise MisconfigurationException(
            f"val_dataloader=None takes the Trainer's validation loader, but there is {type(found).__name__}. Pass"
            f" val_dataloader=, {remedy}."
        )
    return found


def check_optimizer(optimizers: Sequence[Optimizer], chosen: int | None) -> Optimizer:
    """The optimizer whose parameters and learning rates the look-ahead takes.

    Raises:
        MisconfigurationException: If there is none, several and none is named, or one of private training.
    """
    if not optimizers:
        raise MisconfigurationException(
            "The module has no optimizer, so that no training step answers to a weight. Return one."
        )
    if chosen is None and len(optimizers) > 1:
        raise MisconfigurationException(
            f"The module has {len(optimizers)} optimizers. Name the one that trains on the weighted loss by its"
            " position in configure_optimizers, such as optimizer=0."
        )
    if chosen is not None and not 0 <= chosen < len(optimizers):
        raise MisconfigurationException(
            f"optimizer={chosen} names none of the module's {len(optimizers)} optimizers: count from 0."
        )
    found = optimizers[chosen or 0]
    if hasattr(found, "original_optimizer"):
        raise MisconfigurationException(
            f"{type(found).__name__} trains privately, but the look-ahead reads each training example once more, by the"
            " gradients of the validation loss, which no budget counts. Learn the weights on public data first, or"
            " leave one of the two out."
        )
    return found


def read_index(batch: Any, reader: Reader | None, num_samples: int, needed: bool) -> Tensor | None:
    """Positions of a batch's examples in the training set, `(B,)`.

    Args:
        batch: A dict with key "index", or a tuple of three or more whose last is the index, as `IndexedDataset` gives.
        reader: Takes the index out of other batches; None for these.
        num_samples: Number N of training examples.
        needed: Whether a batch without an index is refused.

    Raises:
        ValueError: If the batch has no index, or one that is out of range.
    """
    found: Any = None
    if reader is not None:
        found = reader(batch)
    elif isinstance(batch, Mapping):
        found = batch.get("index")
    elif isinstance(batch, tuple | list) and len(batch) >= 3:
        found = batch[-1]
    valid = isinstance(found, Tensor) and found.ndim == 1 and not found.is_floating_point()
    if not valid:
        if not needed and reader is None:
            return None
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"A training batch, {type(batch).__name__}, has no index of its examples (found {shape}). Wrap the training"
            " set in IndexedDataset, so that a tuple ends in the index and a dict has the key 'index', or pass"
            " index_fn=, which takes it out of a batch."
        )
    index: Tensor = found.long()
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= num_samples:
        raise ValueError(
            f"A training batch has the index {low if low < 0 else high}, but num_samples={num_samples} allows 0 to"
            f" {num_samples - 1}. Pass num_samples=len(train_set), or index_fn= if this is no index."
        )
    return index


def read_labels(batch: Any, reader: Reader | None) -> Tensor:
    """Classes of a batch's examples, `(B,)`: key "label" or "labels" of a dict, second of a tuple.

    Raises:
        ValueError: If there are none.
    """
    found: Any = None
    if reader is not None:
        found = reader(batch)
    elif isinstance(batch, Mapping):
        found = next((batch[key] for key in LABEL_KEYS if key in batch), None)
    elif isinstance(batch, tuple | list) and len(batch) >= 2:
        found = batch[1]
    if not isinstance(found, Tensor) or found.ndim != 1 or found.is_floating_point():
        raise ValueError(
            f"A training batch, {type(batch).__name__}, has no classes of shape (B,). Pass label_fn=, which takes them"
            " out of a batch."
        )
    return found.long()


def check_batch_size(losses: Tensor, index: Tensor | None) -> None:
    """Refuses losses that are not one per example.

    Raises:
        ValueError: If losses and index differ in length.
    """
    if index is not None and len(index) != len(losses):
        raise ValueError(
            f"A training batch has {len(index)} indices, but {len(losses)} losses per example. One loss per example is"
            " needed."
        )


def check_repeatable(first: Tensor, second: Tensor) -> None:
    """Refuses losses that two passes over one batch, from the same random numbers of torch, do not repeat.

    Raises:
        MisconfigurationException: If they differ by more than rounding.
    """
    if not torch.allclose(first.float(), second.float(), rtol=1e-2, atol=1e-3, equal_nan=True):
        raise MisconfigurationException(
            "Two passes over one training batch give different losses, so that a look-ahead would compare unlike"
            " things: something in them draws from the random numbers of numpy or Python, or keeps a state. Draw from"
            " torch's, move the augmentation into the data set, or offer per_sample_loss(batch) without it."
        )


def count_labels(loader: Any, reader: Reader | None) -> Tensor:
    """Examples of each class in a loader, `(C,)` int64, by reading it once.

    Raises:
        ValueError: If its batches have no labels, or there are none.
    """
    counts = torch.zeros(0, dtype=torch.int64)
    for batch in loader:
        found = torch.bincount(read_labels(batch, reader).cpu(), minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    if not counts.sum():
        raise ValueError("The training loader yields no batch to count classes in. Pass class_counts=.")
    return counts
