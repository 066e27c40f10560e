"""Datamodules by setting; they know no method and download nothing at import or construction."""

from .dataset import ImageDataset, collate_images
from .digit_scenes import DigitScenesDataModule
from .digits import DigitsDataModule
from .errors import DatasetNotFoundError
from .fashion_mnist import FashionMNISTDataModule
from .hub_images import HubImageDataModule
from .image_text import RetrievalDataModule
from .image_text_files import ImageTextDataModule
from .images import ImageDataModule

__all__ = [
    "DatasetNotFoundError",
    "DigitScenesDataModule",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "HubImageDataModule",
    "ImageDataModule",
    "ImageDataset",
    "ImageTextDataModule",
    "RetrievalDataModule",
    "collate_images",
]
