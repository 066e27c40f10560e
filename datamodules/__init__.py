"""Datamodules by setting; they know no method and download nothing at import or construction."""

from .classification import ClassificationDataModule
from .dataset import ImageDataset, collate_images
from .degradation import Degradation
from .digit_scenes import DigitScenesDataModule
from .digits import DigitsDataModule
from .docstrings import DocstringDataModule
from .errors import DatasetNotFoundError
from .fashion_mnist import FashionMNISTDataModule
from .federated import FederatedDataModule
from .hub_images import HubImageDataModule
from .hub_text import HubTextDataModule
from .image_folder import ImageFolderDataModule
from .image_text import RetrievalDataModule
from .image_text_emoji import EmojiDataModule
from .image_text_files import ImageTextDataModule
from .images import ImageDataModule
from .indexed import IndexedDataset
from .open_set import OpenSetDataModule
from .open_set_split import OpenSetSplit
from .partition import (
    BernoulliDirichletPartition,
    ColumnPartition,
    DirichletPartition,
    FlowerPartition,
    IIDPartition,
    Partition,
    PathologicalPartition,
    ShardPartition,
)
from .text import TextDataModule
from .text_dataset import PaddingCollator, TextDataset
from .tokenizers import train_word_tokenizer
from .translation import TranslationDataModule

__all__ = [
    "BernoulliDirichletPartition",
    "ClassificationDataModule",
    "ColumnPartition",
    "DatasetNotFoundError",
    "Degradation",
    "DigitScenesDataModule",
    "DigitsDataModule",
    "DirichletPartition",
    "DocstringDataModule",
    "EmojiDataModule",
    "FashionMNISTDataModule",
    "FederatedDataModule",
    "FlowerPartition",
    "HubImageDataModule",
    "HubTextDataModule",
    "IIDPartition",
    "ImageDataModule",
    "ImageDataset",
    "ImageFolderDataModule",
    "ImageTextDataModule",
    "IndexedDataset",
    "OpenSetDataModule",
    "OpenSetSplit",
    "PaddingCollator",
    "Partition",
    "PathologicalPartition",
    "RetrievalDataModule",
    "ShardPartition",
    "TextDataModule",
    "TextDataset",
    "TranslationDataModule",
    "collate_images",
    "train_word_tokenizer",
]
