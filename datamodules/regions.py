"""Region features of images, by position: in memory, memory-mapped, or one file each."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class RegionBatch(NamedTuple):
    """Regions of B images, padded to the same number.

    Attributes:
        regions: Features `(B, R, D)`, float32, zero where padded.
        mask: True where a region is real `(B, R)`.
        boxes: Left, top, right, bottom in pixels `(B, R, 4)`, zero where unknown.
    """

    regions: Tensor
    mask: Tensor
    boxes: Tensor


class Regions(Protocol):
    """A sequence of images, known by their regions."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, positions: Sequence[int]) -> RegionBatch:
        """Regions of the images at some positions."""
        ...


class ArrayRegions:
    """The same number of regions for each image, in one array that may be memory-mapped.

    Args:
        features: `(N, R, D)`, of any float type.
        boxes: `(N, R, 4)`; None where they are not known.

    Raises:
        ValueError: If the array is not `(N, R, D)` or has no region, or the boxes do not fit it.
    """

    def __init__(self, features: NDArray[np.floating], boxes: Tensor | None = None) -> None:
        if features.ndim != 3 or features.shape[1] == 0:
            raise ValueError(f"features is {features.shape}; pass (N, R, D) with at least one region R.")
        if boxes is not None and tuple(boxes.shape) != (*features.shape[:2], 4):
            raise ValueError(f"boxes is {tuple(boxes.shape)}; pass {(*features.shape[:2], 4)}.")
        self.features, self.boxes = features, boxes

    def __len__(self) -> int:
        """Number of images."""
        return len(self.features)

    def read(self, positions: Sequence[int]) -> RegionBatch:
        """Regions of the images at some positions."""
        regions = torch.from_numpy(np.ascontiguousarray(self.features[list(positions)], np.float32))
        boxes = torch.zeros(*regions.shape[:2], 4) if self.boxes is None else self.boxes[list(positions)]
        return RegionBatch(regions, torch.ones(regions.shape[:2], dtype=torch.bool), boxes)


class RegionSubset:
    """Some images of other regions, in a given order, such as one split or one of five copies.

    Args:
        regions: All images.
        positions: Which of them.

    Raises:
        ValueError: If a position is out of range.
    """

    def __init__(self, regions: Regions, positions: Sequence[int]) -> None:
        if len(positions) and not 0 <= min(positions) <= max(positions) < len(regions):
            raise ValueError(f"positions reach from {min(positions)} to {max(positions)} of {len(regions)} images.")
        self.regions, self.positions = regions, list(positions)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.positions)

    def read(self, positions: Sequence[int]) -> RegionBatch:
        """Regions of the images at some positions."""
        return self.regions.read([self.positions[position] for position in positions])


def pad_regions(features: Sequence[NDArray[np.floating]], boxes: Sequence[NDArray[np.floating] | None]) -> RegionBatch:
    """Brings images of different numbers of regions to one tensor.

    Args:
        features: One array `(R_i, D)` for each image.
        boxes: One array `(R_i, 4)` for each image, or None.
    """
    longest, size = max(len(rows) for rows in features), features[0].shape[1]
    batch = RegionBatch(
        torch.zeros(len(features), longest, size),
        torch.zeros(len(features), longest, dtype=torch.bool),
        torch.zeros(len(features), longest, 4),
    )
    for row, (values, box) in enumerate(zip(features, boxes, strict=True)):
        batch.regions[row, : len(values)] = torch.from_numpy(np.array(values, np.float32))
        batch.mask[row, : len(values)] = True
        if box is not None:
            batch.boxes[row, : len(values)] = torch.from_numpy(np.array(box, np.float32))
    return batch
