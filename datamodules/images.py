"""What the image datamodules share: splits by a seed, loaders, and the scale of the pixels."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from .dataset import ImageDataset, ImageTransform, collate_images

Split = Literal["train", "validation", "test"]


class ImageDataModule(LightningDataModule, ABC):
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

    Attributes:
        train_set: Training part, an `ImageDataset`; None before `setup("fit")`.
        val_set: Validation part; None before `setup("fit")` or where there is none.
        test_set: Test part; None before `setup("test")`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    class_names: tuple[str, ...]
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
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction={val_fraction} must lie in [0, 1).")
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} must be at least 0.")
        if not value_range[0] < value_range[1]:
            raise ValueError(f"value_range={tuple(value_range)} must rise, as in (-1.0, 1.0).")
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.num_workers = num_workers
        self.train_transform = train_transform
        self.drop_last = drop_last
        self.value_range = value_range
        self.train_set: ImageDataset | None = None
        self.val_set: ImageDataset | None = None
        self.test_set: ImageDataset | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @abstractmethod
    def read(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Reads pixels `(N, C, H, W)` uint8 and labels `(N,)` int64; None if there is no validation split."""

    def setup(self, stage: str | None = None) -> None:
        """Loads the parts that a stage needs, each once; None loads all.

        Raises:
            DatasetNotFoundError: If the files are at none of the places looked at.
        """
        if stage in {"fit", "validate", None} and self.train_set is None:
            self._setup_fit()
        if stage in {"test", "predict", None} and self.test_set is None:
            self.test_set = self._dataset(*self._require("test"))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Shuffled batches of the training set."""
        return self._loader(self.train_set, "fit", training=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]] | list[None]:
        """Batches of the validation set in its order; no loader where nothing is held out."""
        if self.train_set is not None and self.val_set is None:
            return []
        return self._loader(self.val_set, "fit")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of the test set in its order."""
        return self._loader(self.test_set, "test")

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of the test set in its order."""
        return self._loader(self.test_set, "predict")

    def _setup_fit(self) -> None:
        images, labels = self._require("train")
        held_out = self.read("validation")
        if held_out is None and self.val_fraction > 0:
            train, val = stratified_split(labels, self.val_fraction, self.split_seed)
            held_out = images[val], labels[val]
            images, labels = images[train], labels[train]
        self.val_set = None if held_out is None else self._dataset(*held_out)
        self.train_set = self._dataset(images, labels, self.train_transform)

    def _require(self, split: Split) -> tuple[Tensor, Tensor]:
        found = self.read(split)
        if found is None:
            raise ValueError(f"{type(self).__name__} has no {split!r} split.")
        return found

    def _dataset(self, images: Tensor, labels: Tensor, transform: ImageTransform | None = None) -> ImageDataset:
        return ImageDataset(images, labels, self.pixel_maximum, self.value_range, transform)

    def _loader(
        self, dataset: ImageDataset | None, stage: str, training: bool = False
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        if dataset is None:
            raise RuntimeError(f"{type(self).__name__} is not set up; call setup({stage!r}) first.")
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=training,
            drop_last=training and self.drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate_images,
        )


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
