"""Image-text sets from files: precomputed splits, Karpathy's JSON, and any region features beside them."""

import os
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info

from .caption_files import CaptionFile, read_karpathy, read_lines
from .errors import DatasetNotFoundError
from .image_text import RetrievalDataModule, Split
from .region_files import open_regions
from .regions import Regions, RegionSubset
from .retrieval_sets import RetrievalSet


class ImageTextDataModule(RetrievalDataModule):
    """Region features and captions from files, memory-mapped where the format allows it; nothing is downloaded.

    `{split}` in a file's name stands for the split's name. Captions in `.txt` are one a line, those of an image
    together; in `.json` they are Karpathy's splits. Regions are `.npy`, bottom-up attention's `.tsv`, `.h5`, or a
    folder of `.npz`; they are matched by name where they have names, else by number. Regions that are repeated for
    each caption are noticed, and counted once.

    Args:
        data_dir: Folder of the files; None takes `$LIT_METHODS_DATA/<dataset>`.
        dataset: Name of that folder.
        regions: File or folder of the regions.
        captions: File of the captions.
        split_names: Names of the training, validation and test split in the files; None for train, dev and test with
            `.txt`, and train, val and test with `.json`.
        captions_per_image: Captions of an image; of a JSON file the first so many.
        num_val_images: Validation images, the first so many; None for all.
        num_test_images: Test images, the first so many, such as 1000 on MSCOCO; None for all.
        batch_size: Images per batch and process.
        captions_per_batch: Training captions per batch and process; None for four times `batch_size`.
        num_workers: Worker processes of each image loader.
        disjoint: Whether training images and captions come from different halves of the training set.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        dataset: str = "f30k_precomp",
        regions: str = "{split}_ims.npy",
        captions: str = "{split}_caps.txt",
        split_names: tuple[str, str, str] | None = None,
        captions_per_image: int = 5,
        num_val_images: int | None = None,
        num_test_images: int | None = None,
        batch_size: int = 16,
        captions_per_batch: int | None = None,
        num_workers: int = 0,
        disjoint: bool = True,
    ) -> None:
        super().__init__(
            batch_size=batch_size, captions_per_batch=captions_per_batch, num_workers=num_workers, disjoint=disjoint
        )
        limits = {"num_val_images": num_val_images, "num_test_images": num_test_images}
        for name, value in {"captions_per_image": captions_per_image, **limits}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if Path(captions).suffix not in (".txt", ".json"):
            raise ValueError(f"captions={captions!r} must end in .txt or .json.")
        self.data_dir, self.dataset, self.regions, self.captions = data_dir, dataset, regions, captions
        self.captions_per_image = captions_per_image
        defaults = ("train", "val", "test") if captions.endswith(".json") else ("train", "dev", "test")
        names = defaults if split_names is None else split_names
        self.split_names: dict[Split, str] = {"train": names[0], "validation": names[1], "test": names[2]}
        self.limits: dict[Split, int | None] = {"train": None, "validation": num_val_images, "test": num_test_images}

    def read(self, split: Split) -> RetrievalSet:
        """Opens the regions and reads the captions of a split."""
        folder, name = self._folder(), self.split_names[split]
        path = folder / self.captions.format(split=name)
        if path.suffix == ".json":
            texts = read_karpathy(path, name, self.captions_per_image)
        else:
            texts = read_lines(path, self.captions_per_image)
        regions = open_regions(folder / self.regions.format(split=name))
        found = RetrievalSet(self._matched(regions, texts), texts.captions, texts.image)
        limit = self.limits[split]
        found = found if limit is None else found.first(limit)
        rank_zero_info(f"{split}: {len(found.regions)} images, {len(found.captions)} captions from {folder}.")
        return found

    def _folder(self) -> Path:
        if self.data_dir is not None:
            return Path(self.data_dir)
        shared = os.environ.get("LIT_METHODS_DATA")
        if shared is None:
            raise DatasetNotFoundError(
                f"Image-text data {self.dataset}",
                ["$LIT_METHODS_DATA, which is not set"],
                f"Pass data_dir=, or set LIT_METHODS_DATA to the parent of a folder {self.dataset}.",
            )
        return Path(shared) / self.dataset

    def _matched(self, regions: Regions, texts: CaptionFile) -> Regions:
        """The split's images among the regions, in the order of the captions' images."""
        count, each = int(texts.image.max()) + 1, self.captions_per_image
        ids = getattr(regions, "ids", None)
        if ids is not None and texts.names:
            rows = {name: row for row, name in enumerate(ids)}
            found = [next((rows[name] for name in names if name in rows), None) for names in texts.names]
            if None in found:
                missing = texts.names[found.index(None)][0]
                raise ValueError(f"regions={self.regions!r} has no image {missing}; extract its regions.")
            return RegionSubset(regions, [row for row in found if row is not None])
        if len(regions) == count:
            return regions
        if texts.num_all and len(regions) == texts.num_all:
            return RegionSubset(regions, texts.rows)
        if len(regions) == len(texts.captions) and each > 1 and _is_repeated(regions, each):
            rank_zero_info(f"regions={self.regions!r} repeats each image {each} times; each is counted once.")
            return RegionSubset(regions, range(0, len(regions), each))
        raise ValueError(
            f"regions={self.regions!r} holds {len(regions)} images, but the captions speak of {count} with {each} "
            "captions each; set captions_per_image=, or match the two files."
        )


def _is_repeated(regions: Regions, each: int) -> bool:
    first = regions.read(range(each)).regions
    last = regions.read(range(len(regions) - each, len(regions))).regions
    return all(torch.equal(part, part[:1].expand_as(part)) for part in (first, last))
