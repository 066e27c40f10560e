"""Datamodules by setting; they know no method and download nothing at import or construction."""

from .dataset import ImageDataset, collate_images
from .digits import DigitsDataModule
from .errors import DatasetNotFoundError
from .fashion_mnist import FashionMNISTDataModule
from .hub_images import HubImageDataModule
from .image_folder import ImageFolderDataModule
from .images import ImageDataModule
from .open_set import OpenSetDataModule
from .open_set_split import OpenSetSplit

__all__ = [
    "DatasetNotFoundError",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "HubImageDataModule",
    "ImageDataModule",
    "ImageDataset",
    "ImageFolderDataModule",
    "OpenSetDataModule",
    "OpenSetSplit",
    "collate_images",
]
