"""What the classification datamodules share: parts by a seed, degradation, indices and loaders."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .degradation import Degradation
from .indexed import IndexedDataset
from .splits import Split, stratified_split

Examples = TypeVar("Examples")
Part = TypeVar("Part", bound=Dataset[Any])


class ClassificationDataModule(LightningDataModule, ABC, Generic[Examples, Part]):
    """Labelled examples in memory, in a training, a validation and a test part.

    The validation set is a stratified part of the training set unless the data set brings its own; the parts
    depend on `split_seed` alone and agree between ranks. Prediction runs over the test set.

    Args:
        batch_size: Examples per batch and process.
        val_fraction: Part of the training set held out for validation, in [0, 1); 0 holds out nothing.
        split_seed: Seed of the split.
        num_workers: Worker processes of each loader.
        drop_last: Whether training drops the last, smaller batch.
        degradation: Low data, class imbalance and label noise, after the split; None leaves the data set as it is.
        yield_index: Whether training batches carry the examples' positions in `train_set`, as `IndexedDataset`.

    Attributes:
        train_set: Training part; None before `setup("fit")`.
        val_set: Validation part; None before `setup("fit")` or where there is none.
        test_set: Test part; None before `setup("test")`.
        true_labels: Training labels `(N,)` before label noise; None before `setup("fit")`.
        corrupted: Whether noise changed each training label `(N,)`, bool; None before `setup("fit")`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    class_names: tuple[str, ...]

    def __init__(
        self,
        batch_size: int,
        val_fraction: float,
        split_seed: int,
        num_workers: int,
        drop_last: bool,
        degradation: Degradation | None,
        yield_index: bool,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction={val_fraction} must lie in [0, 1).")
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} must be at least 0.")
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.degradation = degradation
        self.yield_index = yield_index
        self.train_set: Part | None = None
        self.val_set: Part | None = None
        self.test_set: Part | None = None
        self.true_labels: Tensor | None = None
        self.corrupted: Tensor | None = None
        if names := getattr(type(self), "class_names", None):
            self.class_names = self.kept_names(names)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    @abstractmethod
    def collate_fn(self) -> Callable[[Any], Any]:
        """Makes a batch of what the parts serve."""

    @abstractmethod
    def read(self, split: Split) -> tuple[Examples, Tensor] | None:
        """Reads examples and labels `(N,)` int64; None if there is no validation split.

        Where the classes are known only now, it sets `class_names` to `kept_names` of them.
        """

    @abstractmethod
    def select(self, examples: Examples, positions: Tensor) -> Examples:
        """The examples at `positions` `(n,)`."""

    @abstractmethod
    def make_part(self, examples: Examples, labels: Tensor, split: Split) -> Part:
        """The data set of one part; the training part is made first."""

    def kept_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names of the classes that `degradation` keeps."""
        return tuple(names) if self.degradation is None else self.degradation.keep(names)

    def setup(self, stage: str | None = None) -> None:
        """Loads the parts that a stage needs, each once; None loads all.

        Raises:
            DatasetNotFoundError: If the files are at none of the places looked at.
            ValueError: If a class has fewer examples than `degradation` asks for.
        """
        if stage in {"fit", "validate", None} and self.train_set is None:
            self._setup_fit()
        if stage in {"test", "predict", None} and self.test_set is None:
            self.test_set = self.make_part(*self._choose(*self._require("test"), "test"), "test")

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of the training set."""
        return self._loader(self.train_set, "fit", training=True)

    def val_dataloader(self) -> DataLoader[Any] | list[None]:
        """Batches of the validation set in its order; no loader where nothing is held out."""
        if self.train_set is not None and self.val_set is None:
            return []
        return self._loader(self.val_set, "fit")

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches of the test set in its order."""
        return self._loader(self.test_set, "test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of the test set in its order."""
        return self._loader(self.test_set, "predict")

    def _setup_fit(self) -> None:
        examples, labels = self._require("train")
        held_out = self.read("validation")
        if held_out is None and self.val_fraction > 0:
            train, val = stratified_split(labels, self.val_fraction, self.split_seed)
            held_out = self.select(examples, val), labels[val]
            examples, labels = self.select(examples, train), labels[train]
        examples, true_labels = self._choose(examples, labels, "train")
        labels = true_labels if self.degradation is None else self.degradation.redraw(true_labels, self.num_classes)
        if held_out is not None:
            held_out = self._choose(*held_out, "validation")
        elif self.degradation is not None and self.degradation.val_per_class is not None:
            raise ValueError(
                f"val_per_class={self.degradation.val_per_class} has nothing to choose from, for the data set has no "
                f"validation part and val_fraction={self.val_fraction} holds none out; raise val_fraction."
            )
        self.true_labels, self.corrupted = true_labels, labels != true_labels
        self.train_set = self.make_part(examples, labels, "train")
        self.val_set = None if held_out is None else self.make_part(*held_out, "validation")
        if self.degradation is not None:
            wrong = f", {int(self.corrupted.sum())} of them wrong" if self.degradation.label_noise else ""
            validation = "none" if held_out is None else _balance(held_out[1])
            rank_zero_info(f"{type(self).__name__}: train {_balance(labels)}{wrong}; val {validation}.")

    def _require(self, split: Split) -> tuple[Examples, Tensor]:
        found = self.read(split)
        if found is None:
            raise ValueError(f"{type(self).__name__} has no {split!r} split.")
        return found

    def _choose(self, examples: Examples, labels: Tensor, split: Split) -> tuple[Examples, Tensor]:
        if self.degradation is None:
            return examples, labels
        positions, labels = self.degradation.choose(labels, self.num_classes, split)
        return self.select(examples, positions), labels

    def _loader(self, dataset: Dataset[Any] | None, stage: str, training: bool = False) -> DataLoader[Any]:
        if dataset is None:
            raise RuntimeError(f"{type(self).__name__} is not set up; call setup({stage!r}) first.")
        return DataLoader(
            IndexedDataset(dataset) if training and self.yield_index else dataset,
            batch_size=self.batch_size,
            shuffle=training,
            drop_last=training and self.drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=self.collate_fn,
        )


def _balance(labels: Tensor) -> str:
    return f"{len(labels)} examples, labels {labels.bincount().tolist()}"
