"""What the image datamodules share: images in memory, and the scale of the pixels."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lit_methods.errors import check_rising

from .classification import ClassificationDataModule
from .dataset import ImageDataset, ImageTransform, collate_images
from .degradation import Degradation
from .splits import Split


class ImageDataModule(ClassificationDataModule[Tensor, ImageDataset]):
    """Labelled images in memory, in batches `(images float32 (B, C, H, W), labels int64 (B,))`.

    Pixels are scaled by constants that do not depend on the data: no statistic of the training set enters the
    preprocessing, as private training requires. The validation set is a stratified part of the training set
    unless the data set brings its own; the parts depend on `split_seed` alone and agree between ranks.
    Prediction runs over the test set.

    Args:
        batch_size: Examples per batch and process.
        val_fraction: Part of the training set held out for validation, in [0, 1); 0 holds out nothing.
        split_seed: Seed of the split.
        num_workers: Worker processes of each loader; 0 suits images in memory without a transform.
        train_transform: Applied to each scaled training image `(C, H, W)`; any module or function.
        drop_last: Whether training drops the last, smaller batch.
        value_range: Lower and upper end of the scaled pixels.
        degradation: Low data, class imbalance and label noise, after the split; None leaves the data set as it is.
        yield_index: Whether training batches end in the examples' positions in `train_set`, int64 `(B,)`.

    Attributes:
        train_set: Training part, an `ImageDataset`; None before `setup("fit")`.
        val_set: Validation part; None before `setup("fit")` or where there is none.
        test_set: Test part; None before `setup("test")`.
        true_labels: Training labels `(N,)` before label noise; None before `setup("fit")`.
        corrupted: Whether noise changed each training label `(N,)`, bool; None before `setup("fit")`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    image_shape: tuple[int, int, int]
    pixel_maximum = 255

    def __init__(
        self,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        num_workers: int = 0,
        train_transform: ImageTransform | None = None,
        drop_last: bool = False,
        value_range: tuple[float, float] = (0.0, 1.0),
        degradation: Degradation | None = None,
        yield_index: bool = False,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            val_fraction=val_fraction,
            split_seed=split_seed,
            num_workers=num_workers,
            drop_last=drop_last,
            degradation=degradation,
            yield_index=yield_index,
        )
        check_rising("value_range", value_range)
        self.train_transform = train_transform
        self.value_range = value_range

    @property
    def collate_fn(self) -> Callable[[Any], tuple[Tensor, ...]]:
        """Passes the finished batches of the parts through."""
        return collate_images

    def select(self, examples: Tensor, positions: Tensor) -> Tensor:
        """The images at `positions`."""
        return examples[positions]

    def make_part(self, examples: Tensor, labels: Tensor, split: Split) -> ImageDataset:
        """The data set of one part; only training images are transformed."""
        transform = self.train_transform if split == "train" else None
        return ImageDataset(
            images=examples,
            labels=labels,
            pixel_maximum=self.pixel_maximum,
            value_range=self.value_range,
            transform=transform,
        )
