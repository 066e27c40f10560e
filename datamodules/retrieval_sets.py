"""Images and captions as two data sets that know their index and nothing of each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .regions import Regions, RegionSubset


@dataclass(frozen=True)
class RetrievalSet:
    """Images, captions, and which image each caption describes.

    Attributes:
        regions: Regions of the images.
        captions: Texts.
        image: Position of each caption's image `(T,)`.

    Raises:
        ValueError: If the mapping does not fit the two, or an image has no caption.
    """

    regions: Regions
    captions: Sequence[str]
    image: Tensor

    def __post_init__(self) -> None:
        if not len(self.regions) or len(self.captions) != len(self.image):
            raise ValueError(
                f"{len(self.regions)} images, {len(self.captions)} captions and {len(self.image)} positions of their "
                "images do not make a set; each caption needs one image."
            )
        if not 0 <= int(self.image.min()) <= int(self.image.max()) < len(self.regions):
            raise ValueError(f"captions name image {int(self.image.max())} of {len(self.regions)} images.")
        counts = torch.bincount(self.image, minlength=len(self.regions))
        if (counts == 0).any():
            raise ValueError(f"image {int((counts == 0).nonzero()[0])} has no caption; leave it out.")

    def first(self, num_images: int) -> "RetrievalSet":
        """The first images with their captions."""
        kept = (self.image < num_images).nonzero().squeeze(1)
        subset = RegionSubset(self.regions, range(min(num_images, len(self.regions))))
        return RetrievalSet(subset, [self.captions[position] for position in kept.tolist()], self.image[kept])


class RegionDataset(Dataset[dict[str, Tensor]]):
    """Images in batches of `regions (B, R, D)`, `mask (B, R)`, `boxes (B, R, 4)` and `index (B,)`.

    Args:
        regions: The images.
        index: Position that each image reports; None for its own.
    """

    def __init__(self, regions: Regions, index: Tensor | None = None) -> None:
        self.regions, self.index = regions, torch.arange(len(regions)) if index is None else index

    def __len__(self) -> int:
        """Number of images."""
        return len(self.regions)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """One image as a batch of one."""
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """A finished batch."""
        return {**self.regions.read(positions)._asdict(), "index": self.index[list(positions)]}


class CaptionDataset(Dataset[dict[str, Any]]):
    """Captions in batches of `captions` (B texts) and `index (B,)`, and `image (B,)` where it may be known.

    Args:
        captions: The texts.
        image: Position of each caption's image `(T,)`; None keeps it secret, as in training.
    """

    def __init__(self, captions: Sequence[str], image: Tensor | None = None) -> None:
        self.captions, self.image = captions, image

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.captions)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """One caption as a batch of one."""
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Any]:
        """A finished batch."""
        chosen = list(positions)
        batch: dict[str, Any] = {"captions": [self.captions[p] for p in chosen], "index": torch.tensor(chosen)}
        return batch if self.image is None else {**batch, "image": self.image[chosen]}


def as_is(batch: Any) -> Any:
    """Collation of batches that are finished already."""
    return batch
