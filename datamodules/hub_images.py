"""Image classification sets of the Hugging Face hub, or a local folder of the same layout."""

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .dataset import ImageTransform
from .degradation import Degradation
from .hub import HubSource, find_column, read_labels
from .images import ImageDataModule
from .splits import Split

if TYPE_CHECKING:
    from datasets import Dataset


class HubImageDataModule(ImageDataModule):
    """An image classification set of the hub, or parquet files `<split>-*.parquet` in a folder.

    Each split is decoded once, when a stage first needs it, into one tensor of N·C·H·W bytes: 154 MB for the
    50,000 images of CIFAR-10, and for a moment twice that while a validation set is split off. A split
    "validation" is used where it exists, and else `val_fraction` of "train".

    `class_names`, `num_classes` and `image_shape` are known after `setup`.

    Args:
        dataset: Name of the data set on the hub.
        data_dir: Folder of `<split>-*.parquet` files; None reads `$LIT_METHODS_DATA/<end of the name>` if that
            holds them, and else the hub.
        subset: Name of a configuration of the hub's data set; None for its default.
        image_column: Column of the images; None for the only image column.
        label_column: Column of the labels; None for the only column of class labels.
        image_size: Height and width that images are resized to; None for images that agree in size.
        cache_dir: Folder of the `datasets` cache; None for its default.
        batch_size: Examples per batch and process.
        val_fraction: Part of the training set held out for validation, in [0, 1); 0 holds out nothing.
        split_seed: Seed of the split.
        num_workers: Worker processes of each loader.
        train_transform: Applied to each scaled training image `(C, H, W)`; any module or function.
        drop_last: Whether training drops the last, smaller batch.
        value_range: Lower and upper end of the scaled pixels.
        degradation: Low data, class imbalance and label noise, after the split; None leaves the data set as it is.
        yield_index: Whether training batches end in the examples' positions in `train_set`, int64 `(B,)`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        dataset: str = "uoft-cs/cifar10",
        data_dir: str | Path | None = None,
        subset: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        image_size: tuple[int, int] | None = None,
        cache_dir: str | Path | None = None,
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
            train_transform=train_transform,
            drop_last=drop_last,
            value_range=value_range,
            degradation=degradation,
            yield_index=yield_index,
        )
        self.source = HubSource(dataset=dataset, data_dir=data_dir, subset=subset, cache_dir=cache_dir)
        self.image_column = image_column
        self.label_column = label_column
        self.image_size = image_size

    def __getattr__(self, name: str) -> NoReturn:
        """Names what `setup` must come before."""
        hint = "; call setup('fit') first" if name in {"class_names", "num_classes", "image_shape"} else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}.")

    def prepare_data(self) -> None:
        """Downloads the data set of the hub into the cache, unless a folder holds it."""
        self.source.download()

    def read(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Reads pixels `(N, C, H, W)` and labels `(N,)` of a split; None if it has no "validation"."""
        rows = self.source.rows(split)
        if rows is None:
            return None
        image_column = find_column(rows, self.image_column, "image_column", "Image")
        label_column = find_column(rows, self.label_column, "label_column", "ClassLabel")
        labels, names = read_labels(rows, label_column, split)
        if names is not None:
            self.class_names = self.kept_names(names)
        images = self._decode(rows, image_column, split)
        self.image_shape = (images.shape[1], images.shape[2], images.shape[3])
        return images, labels

    def _decode(self, rows: "Dataset", column: str, split: str) -> Tensor:
        images: Tensor | None = None
        mode = "RGB"
        bar = tqdm(rows.select_columns(column), desc=f"decoding {split}", disable=None)
        for index, row in enumerate(bar):
            picture = row[column]
            if images is None:
                mode = "L" if picture.mode in {"1", "L"} else "RGB"
            picture = picture.convert(mode)
            if self.image_size is not None:
                picture = picture.resize(self.image_size[::-1])
            pixels = torch.from_numpy(np.atleast_3d(np.array(picture))).movedim(-1, 0)
            if images is None:
                images = torch.empty(len(rows), *pixels.shape, dtype=torch.uint8)
            elif pixels.shape != images.shape[1:]:
                raise ValueError(
                    f"Image {index} of {split!r} is {tuple(pixels.shape)}, the first is "
                    f"{tuple(images.shape[1:])}; pass image_size=(height, width)."
                )
            images[index] = pixels
        if images is None:
            raise ValueError(f"Split {split!r} of {self.source.dataset!r} is empty.")
        return images
