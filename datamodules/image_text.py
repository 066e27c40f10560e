"""Images known by their regions and captions known by their text, apart from each other until they are evaluated."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from .regions import RegionSubset
from .retrieval_sets import CaptionDataset, RegionDataset, RetrievalSet, as_is

Split = Literal["train", "validation", "test"]


class RetrievalDataModule(LightningDataModule, ABC):
    """Images and captions in loaders of their own.

    Training pairs nothing: each batch is `{"images": ..., "captions": ...}`, both shuffled on their own, the images of
    one half of the training set and the captions of the other. Validation and test have two loaders, captions first and
    then images, prediction images first and then captions. A batch of captions has `captions` and `index` (and `image`
    outside training), one of images `regions`, `mask`, `boxes` and `index`.

    Args:
        batch_size: Images per batch and process.
        captions_per_batch: Training captions per batch and process; None for four times `batch_size`.
        num_workers: Worker processes of each image loader.
        disjoint: Whether training images and captions come from different halves of the training set.

    Attributes:
        sets: What was read, by split.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        batch_size: int = 16,
        captions_per_batch: int | None = None,
        num_workers: int = 0,
        disjoint: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        if captions_per_batch is not None and captions_per_batch < 1:
            raise ValueError(f"captions_per_batch={captions_per_batch} must be at least 1.")
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} must be at least 0.")
        self.batch_size, self.num_workers, self.disjoint = batch_size, num_workers, disjoint
        self.captions_per_batch = captions_per_batch or 4 * batch_size
        self.sets: dict[Split, RetrievalSet] = {}

    @abstractmethod
    def read(self, split: Split) -> RetrievalSet:
        """Reads a split."""

    def setup(self, stage: str | None = None) -> None:
        """Reads the splits that a stage needs, each once; None reads all."""
        wanted: dict[str | None, tuple[Split, ...]] = {
            "fit": ("train", "validation"),
            "validate": ("validation",),
            "test": ("test",),
            "predict": ("test",),
            None: ("train", "validation", "test"),
        }
        for split in wanted[stage]:
            if split not in self.sets:
                self.sets[split] = self.read(split)

    def train_dataloader(self) -> CombinedLoader:
        """Images and captions without their mapping, as long as the longer of the two.

        Raises:
            ValueError: If `disjoint` leaves no caption.
        """
        found = self._set("train", "fit")
        half = (len(found.regions) + 1) // 2 if self.disjoint else len(found.regions)
        images = RegionDataset(RegionSubset(found.regions, range(half)))
        kept = [t for t, image in enumerate(found.image.tolist()) if not self.disjoint or image >= half]
        if not kept:
            raise ValueError(f"the training set has {len(found.regions)} image; disjoint halves need two at least.")
        captions = CaptionDataset([found.captions[t] for t in kept])
        loaders = {
            "images": self._loader(images, shuffle=True),
            "captions": DataLoader(captions, batch_size=self.captions_per_batch, shuffle=True, collate_fn=as_is),
        }
        return CombinedLoader(loaders, "max_size_cycle")

    def region_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Images of the training set in their order, for statistics that need no caption."""
        if "train" not in self.sets:
            self.sets["train"] = self.read("train")
        half = (len(self.sets["train"].regions) + 1) // 2
        regions = self.sets["train"].regions
        return self._loader(RegionDataset(RegionSubset(regions, range(half)) if self.disjoint else regions))

    def knowledge_dataloader(self) -> Iterable[tuple[Tensor, list[str]]] | None:
        """Named regions to build knowledge from, features `(N, D)` and N names; None where the data has none."""
        return None

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Captions, then images, of the validation set."""
        return self._evaluation("validation", "validate")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Captions, then images, of the test set."""
        return self._evaluation("test", "test")

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """Images, then captions, of the test set."""
        return self._evaluation("test", "predict")[::-1]

    def picture(self, split: Split, index: int) -> Tensor | None:
        """Picture `(3, H, W)` in [0, 1] in whose pixels the boxes are, to draw on; None where there is none."""
        return None

    def _evaluation(self, split: Split, stage: str) -> list[DataLoader[Any]]:
        found = self._set(split, stage)
        captions = CaptionDataset(found.captions, found.image)
        # every process ranks all captions: this sampler keeps Lightning from sharing them out
        everything: DistributedSampler[Any] = DistributedSampler(captions, num_replicas=1, rank=0, shuffle=False)
        loader: DataLoader[Any] = DataLoader(captions, batch_size=1024, sampler=everything, collate_fn=as_is)
        return [loader, self._loader(RegionDataset(found.regions))]

    def _set(self, split: Split, stage: str) -> RetrievalSet:
        if split not in self.sets:
            raise RuntimeError(f"{type(self).__name__} is not set up; call setup({stage!r}) first.")
        return self.sets[split]

    def _loader(self, dataset: RegionDataset, shuffle: bool = False) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=as_is,
        )
