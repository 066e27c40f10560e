"""Fashion-MNIST from its idx files."""

import gzip
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import ImageTransform
from .degradation import Degradation
from .errors import DatasetNotFoundError
from .images import ImageDataModule
from .splits import Split

_UNSIGNED_BYTE = 8
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_PREFIXES = {"train": "train", "test": "t10k"}


class FashionMNISTDataModule(ImageDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test pictures of clothes, 28x28 grey, about 55 MB in memory.

    Reads the four idx files, gzipped or not. Nothing is downloaded.

    Args:
        data_dir: Folder of the idx files; None looks in `$LIT_METHODS_DATA/fashion-mnist`, then in the folder
            of the Debian package `dataset-fashion-mnist`.
        batch_size: Examples per batch and process.
        val_fraction: Part of the training set held out for validation, in [0, 1); 0 holds out nothing.
        split_seed: Seed of the split.
        num_workers: Worker processes of each loader.
        train_transform: Applied to each scaled training image `(1, 28, 28)`; any module or function.
        drop_last: Whether training drops the last, smaller batch.
        value_range: Lower and upper end of the scaled pixels.
        degradation: Low data, class imbalance and label noise, after the split; None leaves the data set as it is.
        yield_index: Whether training batches end in the examples' positions in `train_set`, int64 `(B,)`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    image_shape = (1, 28, 28)

    def __init__(
        self,
        data_dir: str | Path | None = None,
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
        self.data_dir = data_dir

    def read(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Reads pixels `(N, 1, 28, 28)` and labels `(N,)` of "train" or "test"."""
        if split == "validation":
            return None
        images = read_idx(self._find(f"{_PREFIXES[split]}-images-idx3-ubyte"))
        labels = read_idx(self._find(f"{_PREFIXES[split]}-labels-idx1-ubyte"))
        return images.unsqueeze(1), labels.to(torch.int64)

    def _find(self, name: str) -> Path:
        shared = os.environ.get("LIT_METHODS_DATA")
        if self.data_dir is not None:
            folders = [Path(self.data_dir)]
        else:
            folders = [*([Path(shared) / "fashion-mnist"] if shared else []), _DEBIAN_FOLDER]
        for path in (folder / f"{name}{ending}" for folder in folders for ending in (".gz", "")):
            if path.is_file():
                return path
        raise DatasetNotFoundError(
            f"Fashion-MNIST ({name}.gz)",
            folders,
            "Install the Debian package dataset-fashion-mnist, pass data_dir=, or set "
            "LIT_METHODS_DATA to the parent of a fashion-mnist folder.",
        )


def read_idx(path: str | Path) -> Tensor:
    """Reads an idx file of unsigned bytes, gzipped if its name ends in `.gz`.

    Args:
        path: The file: two zero bytes, the type, the number of axes, their sizes as big-endian uint32, data.

    Returns:
        The values, uint8, in the file's shape.

    Raises:
        ValueError: If the file is no idx file of unsigned bytes or is cut short.
    """
    path = Path(path)
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise ValueError(f"path={path} is no idx file of unsigned bytes; fetch it again.")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"path={path} ends inside its header; fetch it again.")
    shape = [int(size) for size in np.frombuffer(content, ">u4", content[3], offset=4)]
    values = np.frombuffer(content, np.uint8, offset=start)
    if values.size != math.prod(shape):
        raise ValueError(f"path={path} holds {values.size} values and announces {shape}; fetch it again.")
    return torch.from_numpy(values.reshape(shape).copy())
