"""Open-set semi-supervised data from any labelled source."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .dataset import ImageDataset, collate_images
from .image_folder import read_synthetic
from .images import ImageDataModule
from .open_set_split import OpenSetSplit, read_positions
from .repeating_sampler import RepeatingSampler

Unlabeled = tuple[Tensor, Tensor, Tensor]


class UnlabeledImages(Dataset[Unlabeled]):
    """Images with their position in the pool and, for diagnosis only, whether their class is known.

    Args:
        images: The images; their labels are not given out.
        known: 1 for images of known classes, 0 for others, -1 where nobody knows; `(N,)` int64.
    """

    def __init__(self, images: ImageDataset, known: Tensor) -> None:
        self.images = images
        self.known = known

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Unlabeled:
        """Image `(C, H, W)`, its position and whether its class is known, both scalars."""
        return self.images[index][0], torch.tensor(index), self.known[index]

    def __getitems__(self, indices: Sequence[int]) -> Unlabeled:
        """Batch `(images (B, C, H, W), positions (B,), known (B,))`."""
        chosen = torch.as_tensor(indices)
        return self.images.__getitems__(indices)[0], chosen, self.known[chosen]


class OpenSetDataModule(LightningDataModule):
    """A few labelled images of known classes and an unlabelled pool that also has images of unknown classes.

    Training batches are `{"labeled": (images, labels), "unlabeled": (images, index, known)}`; `known` is 1, 0 or -1
    (nobody knows) and serves diagnosis alone. With `synthetic_as="labeled"` the second part is
    `"synthetic": (images, labels)` instead. Validation and test batches are `(images, labels)` of known classes;
    prediction runs over the pool. Labels are 0 to K - 1 in the order of `known_classes`.

    Args:
        source: Any labelled images; its own batch size and validation fraction play no part.
        known_classes: Classes of the task, at least two.
        labels_per_class: Labelled images of each known class.
        unlabeled_classes: Classes of the unlabelled pool; None for all.
        unlabeled_per_class: Most unlabelled images of one class; None for no bound.
        mismatch: Share of images of unknown classes in the pool; None leaves the classes in the numbers they have.
        val_per_class: Validation images of each known class, taken from the training part; 0 takes the source's own
            validation part if it has one.
        include_labeled: Whether labelled images are in the pool too.
        extra_unlabeled: A second source whose training images join the pool, all of unknown classes.
        pool_file: JSON file of the positions in the pool that are kept, as `RelevanceDiscriminator(selection_file=...)`
            writes it: the arm that only filters. None keeps all.
        synthetic_dir: What `SyntheticImageWriter` has written; None for none.
        synthetic_as: "unlabeled" puts it in the place of the pool (DWD-UT), "labeled" trains on it with the labels
            it was generated for (DWD-SL).
        batch_size: Labelled examples per training batch and process, and of all other batches.
        unlabeled_ratio: Unlabelled or synthetic examples per labelled one in a training batch.
        steps_per_epoch: Batches of an epoch; None for one pass through the pool. Small sets are repeated.
        evaluate_unlabeled: Whether validation has a second loader, over the pool.
        split_seed: Seed of the split and of the order.
        split_file: JSON file of the split: read if it exists, else written.
        num_workers: Worker processes of each loader.

    Attributes:
        split: The split; None before `setup`.
        labeled_set: Labelled images, an `ImageDataset`.
        unlabeled_set: The pool, an `UnlabeledImages`.

    Guarantees:
        - The labelled, unlabelled and validation parts share no image (unless `include_labeled`); none is from the
          test part.
        - The split depends on the labels, the arguments and `split_seed` alone.

    Raises:
        ValueError: If an argument is out of its range, or the source is too small.
    """

    def __init__(
        self,
        source: ImageDataModule,
        known_classes: Sequence[int],
        labels_per_class: int,
        unlabeled_classes: Sequence[int] | None = None,
        unlabeled_per_class: int | None = None,
        mismatch: float | None = None,
        val_per_class: int = 0,
        include_labeled: bool = False,
        extra_unlabeled: ImageDataModule | None = None,
        pool_file: str | Path | None = None,
        synthetic_dir: str | Path | None = None,
        synthetic_as: Literal["unlabeled", "labeled"] = "unlabeled",
        batch_size: int = 64,
        unlabeled_ratio: int = 7,
        steps_per_epoch: int | None = None,
        evaluate_unlabeled: bool = False,
        split_seed: int = 0,
        split_file: str | Path | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("known_classes", len(known_classes), 2),
            ("labels_per_class", labels_per_class, 1),
            ("val_per_class", val_per_class, 0),
            ("batch_size", batch_size, 1),
            ("unlabeled_ratio", unlabeled_ratio, 1),
            ("steps_per_epoch", 1 if steps_per_epoch is None else steps_per_epoch, 1),
            ("unlabeled_per_class", 1 if unlabeled_per_class is None else unlabeled_per_class, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                count = "the number of " if name == "known_classes" else ""
                raise ValueError(f"{count}{name}={value} must be at least {least}.")
        if synthetic_as not in ("unlabeled", "labeled"):
            raise ValueError(f"synthetic_as={synthetic_as!r} must be 'unlabeled' or 'labeled'.")
        self.source, self.extra_unlabeled = source, extra_unlabeled
        self.known_classes, self.labels_per_class = tuple(known_classes), labels_per_class
        self.unlabeled_classes, self.unlabeled_per_class = unlabeled_classes, unlabeled_per_class
        self.mismatch, self.val_per_class, self.include_labeled = mismatch, val_per_class, include_labeled
        self.pool_file, self.synthetic_dir, self.synthetic_as = pool_file, synthetic_dir, synthetic_as
        self.batch_size, self.unlabeled_ratio, self.steps_per_epoch = batch_size, unlabeled_ratio, steps_per_epoch
        self.evaluate_unlabeled, self.split_seed = evaluate_unlabeled, split_seed
        self.split_file, self.num_workers = split_file, num_workers
        self.split: OpenSetSplit | None = None
        self.labeled_set: ImageDataset | None = None
        self.unlabeled_set: UnlabeledImages | None = None
        self.synthetic_set: ImageDataset | None = None
        self.val_set: ImageDataset | None = None
        self.test_set: ImageDataset | None = None

    @property
    def num_classes(self) -> int:
        """Number K of known classes."""
        return len(self.known_classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the known classes in the order of their labels, after `setup`."""
        return tuple(self.source.class_names[label] for label in self.known_classes)

    @property
    def prior(self) -> float:
        """Share mu of images of known classes in the pool; for diagnosis, as a real task would not know it.

        Raises:
            RuntimeError: Before `setup`.
        """
        if self.unlabeled_set is None:
            raise RuntimeError("OpenSetDataModule is not set up; call setup('fit') first.")
        return float((self.unlabeled_set.known == 1).float().mean())

    @property
    def prediction_settings(self) -> dict[str, str]:
        """What tells this pool from another, after `setup`: a digest of its pixels, their order and their range."""
        images = self._ready(self.unlabeled_set, "predict").images.images
        low, high = self.source.value_range
        digest = hashlib.sha256(f"{tuple(images.shape)} {self.source.pixel_maximum} {low:g} {high:g}".encode())
        digest.update(images.contiguous().numpy())
        return {"pool": digest.hexdigest()[:16]}

    def prepare_data(self) -> None:
        """Lets the sources download what they need."""
        for source in (self.source, self.extra_unlabeled):
            if source is not None:
                source.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Loads the parts that a stage needs, each once; None loads all.

        Raises:
            DatasetNotFoundError: If the files are at none of the places looked at.
        """
        if stage in {"fit", "validate", "predict", None} and self.labeled_set is None:
            self._setup_fit()
        if stage in {"test", None} and self.test_set is None:
            found = self.source.read("test")
            if found is None:
                raise ValueError(f"source={type(self.source).__name__} has no test part.")
            self.test_set = self._known_part(*found)

    def train_dataloader(self) -> CombinedLoader:
        """Labelled batches beside unlabelled or synthetic ones, equally many of both."""
        second: Dataset[Any]
        if self.synthetic_set is None:
            name, second = "unlabeled", self._ready(self.unlabeled_set)
        else:
            name, second = "synthetic", self.synthetic_set
        processes = self.trainer.world_size if self.trainer is not None else 1
        size = self.batch_size * self.unlabeled_ratio
        steps = self.steps_per_epoch or -(-len(second) // (size * processes))  # type: ignore[arg-type]  # torch's Dataset promises no length and no batches
        loaders = {
            "labeled": self._training_loader(self._ready(self.labeled_set), self.batch_size, steps, 0),
            name: self._training_loader(second, size, steps, 1),
        }
        return CombinedLoader(loaders, "min_size")

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Validation images, then the pool if `evaluate_unlabeled`."""
        self._ready(self.labeled_set)
        parts = [self.val_set, self.unlabeled_set if self.evaluate_unlabeled else None]
        return [self._loader(part) for part in parts if part is not None]

    def test_dataloader(self) -> DataLoader[Any]:
        """Test images of known classes."""
        return self._loader(self._ready(self.test_set, "test"))

    def predict_dataloader(self) -> DataLoader[Any]:
        """The pool in its order."""
        return self._loader(self._ready(self.unlabeled_set, "predict"))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch; the index of unlabelled training images stays on the CPU, where tables by example are."""
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        if isinstance(batch, dict) and "unlabeled" in batch:
            images, _, known = moved["unlabeled"]
            moved["unlabeled"] = images, batch["unlabeled"][1], known
        return moved

    def _setup_fit(self) -> None:
        found = self.source.read("train")
        if found is None:
            raise ValueError(f"source={type(self.source).__name__} has no training part.")
        images, labels = found
        split = self.split = self._split(labels)
        self.labeled_set = self._known_part(images[split.labeled], labels[split.labeled])
        self.val_set = self._validation(images, labels, split)
        known = torch.isin(labels[split.unlabeled], torch.tensor(self.known_classes)).long()
        pool = images[split.unlabeled]
        if self.extra_unlabeled is not None:
            extra = self.extra_unlabeled.read("train")
            if extra is None or extra[0].shape[1:] != pool.shape[1:]:
                shape = None if extra is None else tuple(extra[0].shape[1:])
                raise ValueError(f"extra_unlabeled has images {shape}, the source {tuple(pool.shape[1:])}.")
            pool, known = torch.cat([pool, extra[0]]), torch.cat([known, torch.zeros(len(extra[0]), dtype=torch.int64)])
        if self.pool_file is not None:
            kept = read_positions(self.pool_file, len(pool))
            pool, known = pool[kept], known[kept]
        self.unlabeled_set = UnlabeledImages(self._dataset(pool, torch.zeros_like(known)), known)
        if self.synthetic_dir is not None:
            self._read_synthetic(self.synthetic_dir, (pool.shape[1], pool.shape[2], pool.shape[3]))

    def _read_synthetic(self, folder: str | Path, shape: tuple[int, int, int]) -> None:
        pictures, labels = read_synthetic(folder, shape)
        if int(labels.min()) < 0 or int(labels.max()) >= self.num_classes:
            raise ValueError(
                f"synthetic_dir={folder} has labels {int(labels.min())} to {int(labels.max())}, but there are "
                f"{self.num_classes} known classes; generate it with this task's diffusion model."
            )
        if self.synthetic_as == "labeled":
            self.synthetic_set = self._dataset(pictures, labels, maximum=255)
        else:
            images = self._dataset(pictures, torch.zeros_like(labels), maximum=255)
            self.unlabeled_set = UnlabeledImages(images, torch.full((len(pictures),), -1))

    def _split(self, labels: Tensor) -> OpenSetSplit:
        if self.split_file is not None and Path(self.split_file).is_file():
            split = OpenSetSplit.load(self.split_file, labels)
            if split.known_classes != self.known_classes:
                raise ValueError(
                    f"split_file={self.split_file} has the classes {list(split.known_classes)}, not "
                    f"known_classes={list(self.known_classes)}."
                )
            return split
        split = OpenSetSplit.make(
            labels,
            self.known_classes,
            self.labels_per_class,
            self.unlabeled_classes,
            self.unlabeled_per_class,
            self.mismatch,
            self.val_per_class,
            self.include_labeled,
            self.split_seed,
        )
        writes = self.trainer is None or (self.trainer.is_global_zero and not self.trainer.fast_dev_run)  # type: ignore[attr-defined]  # a property that Lightning makes by name
        if self.split_file is not None and writes:
            split.save(self.split_file)
        return split

    def _validation(self, images: Tensor, labels: Tensor, split: OpenSetSplit) -> ImageDataset | None:
        if self.val_per_class:
            return self._known_part(images[split.val], labels[split.val])
        own = self.source.read("validation")
        return None if own is None else self._known_part(*own)

    def _known_part(self, images: Tensor, labels: Tensor) -> ImageDataset:
        wanted = torch.isin(labels, torch.tensor(self.known_classes))
        images, labels = images[wanted], labels[wanted]
        new = torch.full((max(int(labels.max()), *self.known_classes) + 1,), -1)
        new[list(self.known_classes)] = torch.arange(self.num_classes)
        return self._dataset(images, new[labels])

    def _dataset(self, images: Tensor, labels: Tensor, maximum: int | None = None) -> ImageDataset:
        return ImageDataset(
            images=images,
            labels=labels,
            pixel_maximum=maximum or self.source.pixel_maximum,
            value_range=self.source.value_range,
        )

    def _ready(self, dataset: Any, stage: str = "fit") -> Any:
        if dataset is None:
            raise RuntimeError(f"OpenSetDataModule is not set up; call setup({stage!r}) first.")
        return dataset

    def _training_loader(self, dataset: Dataset[Any], size: int, steps: int, stream: int) -> DataLoader[Any]:
        rank, processes = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        sampler = RepeatingSampler(
            size=len(dataset),  # type: ignore[arg-type]  # torch's Dataset promises no length and no batches
            num_samples=size * steps,
            seed=2 * self.split_seed + stream,
            num_replicas=processes,
            rank=rank,
        )
        return self._loader(dataset, size, sampler)

    def _loader(
        self, dataset: Dataset[Any], size: int | None = None, sampler: RepeatingSampler | None = None
    ) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=size or self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate_images,
        )
