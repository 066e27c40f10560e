"""Toy sets of the datamodules that belong to no room."""

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
from lightning.pytorch import LightningDataModule
from PIL import Image

import lit_methods
from tests.entries.toys import (
    BATCH,
)


def _fashion_mnist(folder: Path) -> LightningDataModule:
    for prefix, count in (("train", 40), ("t10k", 20)):
        for name, values in (("images-idx3", np.zeros((count, 28, 28))), ("labels-idx1", np.arange(count) % 10)):
            header = np.array([0x800 + values.ndim, *values.shape], ">u4").tobytes()
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + values.astype(np.uint8).tobytes())
    return lit_methods.FashionMNISTDataModule(folder, batch_size=BATCH, val_fraction=0.25)


def _hub_images(folder: Path) -> LightningDataModule:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for split in ("train", "test"):
        rows = {"image": [Image.new("RGB", (5, 5), (i, i, i)) for i in range(16)], "label": [0, 1] * 8}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-0.parquet")
    return lit_methods.HubImageDataModule(
        data_dir=folder, cache_dir=folder / "cache", batch_size=BATCH, val_fraction=0.25
    )


def _hub_text(folder: Path) -> LightningDataModule:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for split in ("train", "test"):
        rows = {"text": [f"{split} " * (1 + i % 3) for i in range(16)], "label": [0, 1] * 8}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-0.parquet")
    return lit_methods.HubTextDataModule(
        data_dir=folder, cache_dir=folder / "cache", batch_size=BATCH, val_fraction=0.25
    )


DATAMODULES: dict[str, Callable[[Path], LightningDataModule]] = {
    "DigitsDataModule": lambda folder: lit_methods.DigitsDataModule(batch_size=BATCH),
    "DocstringDataModule": lambda folder: lit_methods.DocstringDataModule(20, batch_size=BATCH),
    "FashionMNISTDataModule": _fashion_mnist,
    "HubImageDataModule": _hub_images,
    "HubTextDataModule": _hub_text,
}
