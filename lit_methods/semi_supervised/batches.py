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
        if batch[name] is None or not len(batch[name][0]):
            raise ValueError(f"batch[{name!r}] is empty; there must be {name} images to train on.")
    if num_classes is not None:
        for name in ("labeled", second) if second == "synthetic" else ("labeled",):
            check_labels(batch[name][1], num_classes, f"batch[{name!r}]")


def check_labels(labels: Tensor, num_classes: int, name: str) -> None:
    """Refuses labels `(B,)` outside [0, K).

    Args:
        labels: The labels.
        num_classes: Number K of classes.
        name: What to call the batch.

    Raises:
        ValueError: If there is one.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"{name} has labels {int(labels.min())} to {int(labels.max())}, but num_classes={num_classes} "
            f"allows 0 to {num_classes - 1}; number the known classes from 0."
        )


def check_equal_shapes(batch: OpenSetBatch) -> None:
    """Refuses labelled and unlabelled images of different channels, height or width.

    Raises:
        ValueError: If they differ.
    """
    labeled, unlabeled = (tuple(batch[name][0].shape[1:]) for name in ("labeled", "unlabeled"))
    if labeled != unlabeled:
        raise ValueError(
            f"batch['labeled'] has images {labeled}, batch['unlabeled'] {unlabeled}; resize or convert them to one "
            "size and mode."
        )
