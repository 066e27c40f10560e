"""The batches that the room trains on, and what is refused of them."""

from typing import Any

from torch import Tensor

Unlabeled = tuple[Tensor, Tensor, Tensor]
OpenSetBatch = dict[str, Any]


def check_training_batch(batch: OpenSetBatch, num_classes: int | None, second: str = "unlabeled") -> None:
    """Refuses a batch that is not `{"labeled": (images, labels), second: ...}` or has labels out of range.

    Args:
        batch: The batch.
        num_classes: Number K of classes; None leaves the labels unchecked, which on a GPU saves waiting for it.
        second: Name of the other part.

    Raises:
        TypeError: If a part is missing.
        ValueError: If a label is outside [0, K) or a part is empty.
    """
    if not isinstance(batch, dict) or "labeled" not in batch or second not in batch:
        parts = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise TypeError(
            f"batch has {parts}, but training needs 'labeled' and {second!r}; OpenSetDataModule makes such batches."
        )
    for name in ("labeled", second):
        if not len(batch[name][0]):
            raise ValueError(f"batch[{name!r}] is empty; there must be {name} images to train on.")
    labels = batch["labeled"][1]
    if num_classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"batch['labeled'] has labels {int(labels.min())} to {int(labels.max())}, but num_classes={num_classes} "
            f"allows 0 to {num_classes - 1}; number the known classes from 0."
        )
