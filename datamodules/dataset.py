"""In-memory images as a map-style data set that serves whole batches by one gather."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

# nn.Module first: jsonargparse would take the class path of a module for a callable that builds a Tensor.
ImageTransform = nn.Module | Callable[[Tensor], Tensor]


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images held as bytes and scaled to float32 by fixed constants when they are read.

    `__getitems__`, which torch's loader prefers, returns a finished batch, so loaders need
    `collate_fn=collate_images`.

    Args:
        images: Pixel values `(N, C, H, W)`, uint8.
        labels: Classes `(N,)`, int64.
        pixel_maximum: Pixel value that maps to the upper end of `value_range`; 0 maps to the lower end.
        value_range: Lower and upper end of the scaled values.
        transform: Applied to each scaled image `(C, H, W)` on its own, so that random ones differ by image.

    Raises:
        ValueError: If images and labels differ in number or the images are not `(N, C, H, W)` bytes.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        pixel_maximum: int = 255,
        value_range: tuple[float, float] = (0.0, 1.0),
        transform: ImageTransform | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images is {images.dtype} {tuple(images.shape)}; pass uint8 (N, C, H, W).")
        if len(images) != len(labels):
            raise ValueError(f"images has {len(images)} rows and labels {len(labels)}; they must agree.")
        self.images = images
        self.labels = labels
        self.transform = transform
        self._low = value_range[0]
        self._scale = (value_range[1] - value_range[0]) / pixel_maximum

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Scaled and transformed image `(C, H, W)` and its label, a scalar."""
        image = self._scaled(self.images[index])
        return (image if self.transform is None else self.transform(image)), self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Batch `(images (B, C, H, W), labels (B,))` of the examples at `indices`."""
        chosen = torch.as_tensor(indices)
        images = self._scaled(self.images[chosen])
        if self.transform is not None:
            images = torch.stack([self.transform(image) for image in images])
        return images, self.labels[chosen]

    def _scaled(self, pixels: Tensor) -> Tensor:
        return pixels.to(torch.float32).mul_(self._scale).add_(self._low)


def collate_images(batch: tuple[Tensor, ...] | list[Any]) -> tuple[Tensor, ...]:
    """Passes a finished batch of `ImageDataset.__getitems__` through and collates a list of examples.

    Args:
        batch: `(images (B, C, H, W), labels (B,))`, or a list of B pairs `(image, label)`; either may go on, for
            example with the index that `IndexedDataset` appends.

    Returns:
        `(images (B, C, H, W), labels (B,), ...)`.
    """
    return batch if isinstance(batch, tuple) else tuple(default_collate(batch))
