"""Datamodules by setting; they know no method and download nothing at import or construction."""

from .dataset import ImageDataset, collate_images
from .digits import DigitsDataModule
from .errors import DatasetNotFoundError
from .fashion_mnist import FashionMNISTDataModule
from .federated import FederatedDataModule
from .hub_images import HubImageDataModule
from .images import ImageDataModule
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

__all__ = [
    "BernoulliDirichletPartition",
    "ColumnPartition",
    "DatasetNotFoundError",
    "DigitsDataModule",
    "DirichletPartition",
    "FashionMNISTDataModule",
    "FederatedDataModule",
    "FlowerPartition",
    "HubImageDataModule",
    "IIDPartition",
    "ImageDataModule",
    "ImageDataset",
    "Partition",
    "PathologicalPartition",
    "ShardPartition",
    "collate_images",
]
