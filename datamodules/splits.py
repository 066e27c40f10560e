"""Named parts of a data set, and how one part is split in two."""

from typing import Literal

import torch
from torch import Tensor

Split = Literal["train", "validation", "test"]


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits `len(labels)` positions in two, each class in the same proportion.

    Args:
        labels: Classes `(N,)`.
        fraction: Part of the positions that the second set receives, in (0, 1).
        seed: Seed of the split; the global random state is neither read nor changed.

    Returns:
        Ascending positions of the first and the second set, int64.

    Raises:
        ValueError: If a class is too small to be in both sets.
    """
    from sklearn.model_selection import train_test_split

    try:
        parts = train_test_split(range(len(labels)), test_size=fraction, random_state=seed, stratify=labels.numpy())
    except ValueError as error:
        raise ValueError(f"fraction={fraction} cannot split {len(labels)} labels by class: {error}") from error
    first, second = (torch.tensor(sorted(part)) for part in parts)
    return first, second
