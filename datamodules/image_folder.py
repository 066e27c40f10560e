"""Images in folders named by their class."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from .dataset import ImageTransform
from .errors import DatasetNotFoundError
from .images import ImageDataModule
from .splits import Split

_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"}
_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}


class ImageFolderDataModule(ImageDataModule):
    """Folders `train/<class>/*.png`, `test/<class>/*` and, if there is one, `val/<class>/*`, held in memory as bytes.

    `class_names` and `image_shape` are known after `setup`. Without a `test` folder, `setup("test")` refuses.

    Args:
        data_dir: The folder that holds `train` and `test`.
        image_size: Height and width that images are resized to; None for images that agree in size.
        mode: "RGB" or "L" (grey); None takes that of the first image.
        batch_size: Examples per batch and process.
        val_fraction: Part of the training set held out for validation where there is no `val` folder, in [0, 1).
        split_seed: Seed of the split.
        num_workers: Worker processes of each loader.
        train_transform: Applied to each scaled training image `(C, H, W)`; any module or function.
        drop_last: Whether training drops the last, smaller batch.
        value_range: Lower and upper end of the scaled pixels.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        data_dir: str | Path,
        image_size: tuple[int, int] | None = None,
        mode: str | None = None,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        num_workers: int = 0,
        train_transform: ImageTransform | None = None,
        drop_last: bool = False,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            val_fraction=val_fraction,
            split_seed=split_seed,
            num_workers=num_workers,
            train_transform=train_transform,
            drop_last=drop_last,
            value_range=value_range,
        )
        self.data_dir = Path(data_dir)
        self.image_size = image_size
        self.mode = mode

    def read(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Reads pixels `(N, C, H, W)` and labels `(N,)` of a split; None if it has no "validation".

        Raises:
            DatasetNotFoundError: If there is no such folder.
            ValueError: If it has classes that are not among those of the training set.
        """
        places = [self.data_dir / name for name in _FOLDERS[split]]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            if split == "validation":
                return None
            raise DatasetNotFoundError(
                f"Folder of class folders for {split!r}", places, "Pass data_dir= with the folder that holds it."
            )
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if split == "train":
            self.class_names = tuple(names)
        known = getattr(self, "class_names", tuple(names))
        if unknown := set(names) - set(known):
            raise ValueError(f"{folder} has classes {sorted(unknown)} that are not among {list(known)}.")
        files = [
            (path, known.index(name))
            for name in names
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in _ENDINGS
        ]
        images = read_images([path for path, _ in files], self.image_size, self.mode)
        self.image_shape = (images.shape[1], images.shape[2], images.shape[3])
        return images, torch.tensor([label for _, label in files], dtype=torch.int64)


def read_images(paths: Sequence[Path], image_size: tuple[int, int] | None = None, mode: str | None = None) -> Tensor:
    """Decodes image files into one tensor `(N, C, H, W)` of bytes.

    Args:
        paths: The files, at least one.
        image_size: Height and width to resize to; None for images that agree in size.
        mode: "RGB" or "L"; None takes that of the first image.

    Raises:
        ValueError: If there is no file or the images differ in size.
    """
    images: Tensor | None = None
    for index, path in enumerate(tqdm(paths, desc="decoding", disable=None)):
        with Image.open(path) as picture:
            if mode is None:
                mode = "L" if picture.mode in {"1", "L"} else "RGB"
            resized = picture.convert(mode)
            if image_size is not None:
                resized = resized.resize((image_size[1], image_size[0]))
        pixels = torch.from_numpy(np.atleast_3d(np.array(resized))).movedim(-1, 0)
        if images is None:
            images = torch.empty(len(paths), *pixels.shape, dtype=torch.uint8)
        elif pixels.shape != images.shape[1:]:
            raise ValueError(
                f"{path} is {tuple(pixels.shape)}, the first image is {tuple(images.shape[1:])}; "
                "pass image_size=(height, width)."
            )
        images[index] = pixels
    if images is None:
        raise ValueError("There is no image file to read.")
    return images


def read_synthetic(folder: str | Path, image_shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Reads a folder of generated images by its table `metadata.csv` with columns `file` and `label`.

    Args:
        folder: What `SyntheticImageWriter` has written, to the end.
        image_shape: Channels, height and width that the images must have.

    Returns:
        Pixels `(N, C, H, W)` uint8 and the labels they were generated for `(N,)` int64.

    Raises:
        DatasetNotFoundError: If the folder has no table: nothing was generated, or not to the end.
        ValueError: If the images have another shape.
    """
    folder = Path(folder)
    table = folder / "metadata.csv"
    if not table.is_file():
        raise DatasetNotFoundError(
            "The table of generated images",
            [table],
            "Run `predict` with SyntheticImageWriter to its end; it goes on where it stopped.",
        )
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    images = read_images([folder / row["file"] for row in rows], mode="L" if image_shape[0] == 1 else "RGB")
    if tuple(images.shape[1:]) != tuple(image_shape):
        raise ValueError(f"{folder} holds images {tuple(images.shape[1:])}, but the data are {tuple(image_shape)}.")
    return images, torch.tensor([int(row["label"]) for row in rows], dtype=torch.int64)
