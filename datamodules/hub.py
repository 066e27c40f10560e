"""Rows of a data set of the Hugging Face hub, or of a local folder of the same parquet files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import DatasetNotFoundError
from .splits import Split

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


@dataclass(frozen=True)
class HubSource:
    """Where the splits of a data set come from.

    Args:
        dataset: Name of the data set on the hub.
        data_dir: Folder of `<split>-*.parquet` files; None reads `$LIT_METHODS_DATA/<end of the name>` if that
            holds them, and else the hub.
        subset: Name of a configuration of the hub's data set; None for its default.
        cache_dir: Folder of the `datasets` cache; None for its default.
    """

    dataset: str
    data_dir: str | Path | None = None
    subset: str | None = None
    cache_dir: str | Path | None = None

    def download(self) -> None:
        """Downloads the data set of the hub into the cache, unless a folder holds it.

        Raises:
            DatasetNotFoundError: If the hub has no such data set or cannot be reached.
        """
        if self._folder() is None:
            self._load_from_hub()

    def rows(self, split: Split) -> "Dataset | None":
        """Rows of a split; None if there is no "validation".

        Raises:
            DatasetNotFoundError: If the data set, or its "train" or "test", is at none of the places looked at.
        """
        folder = self._folder()
        if folder is None:
            parts = self._load_from_hub()
            if split in parts:
                return parts[split]
            places: list[object] = [f"the hub's splits {sorted(parts)}"]
        else:
            files = sorted(str(path) for path in folder.glob(f"{split}-*.parquet"))
            if files:
                from datasets import load_dataset

                return load_dataset("parquet", data_files=files, split="train", cache_dir=self._cache())
            places = [folder]
        if split == "validation":
            return None
        raise DatasetNotFoundError(
            f"Split {split!r} of {self.dataset!r} ({split}-*.parquet)",
            places,
            "Pass data_dir= with a folder that holds these files.",
        )

    def _folder(self) -> Path | None:
        if self.data_dir is not None:
            return Path(self.data_dir)
        shared = os.environ.get("LIT_METHODS_DATA")
        folder = Path(shared) / self.dataset.rsplit("/", maxsplit=1)[-1] if shared else None
        return folder if folder is not None and any(folder.glob("train-*.parquet")) else None

    def _load_from_hub(self) -> "DatasetDict":
        from datasets import load_dataset

        try:
            return load_dataset(self.dataset, self.subset, cache_dir=self._cache())
        except (FileNotFoundError, ConnectionError) as error:
            shared = os.environ.get("LIT_METHODS_DATA")
            places = [f"{shared} (LIT_METHODS_DATA)"] if shared else []
            raise DatasetNotFoundError(
                f"Data set {self.dataset!r}",
                [*places, f"the hub and its cache ({error})"],
                "Check the name and the connection, pass data_dir= with a folder of <split>-*.parquet files, or "
                "set LIT_METHODS_DATA to the parent of such a folder.",
            ) from error

    def _cache(self) -> str | None:
        return None if self.cache_dir is None else str(self.cache_dir)


def find_column(rows: "Dataset", given: str | None, argument: str, kind: str) -> str:
    """The column that was named, or the only one of a kind.

    Args:
        rows: A split.
        given: Name of the column; None finds it.
        argument: Name of the argument that `given` came from, for the error.
        kind: Type of the feature, such as "ClassLabel" or "Image", or for a plain value its dtype, such as "string",
            which takes in "large_string".

    Raises:
        ValueError: If the column does not exist, or if not exactly one is of that kind.
    """
    if given is not None:
        if given not in rows.features:
            raise ValueError(f"{argument}={given!r} is none of the columns {list(rows.features)}.")
        return given
    found = [
        str(name)
        for name, feature in rows.features.items()
        if kind in (type(feature).__name__, str(getattr(feature, "dtype", None)).removeprefix("large_"))
    ]
    if len(found) != 1:
        raise ValueError(
            f"{argument}=None needs exactly one {kind} column, found {found} among "
            f"{list(rows.features)}; pass {argument}=."
        )
    return found[0]


def read_labels(rows: "Dataset", column: str, split: Split) -> tuple[Tensor, Sequence[str] | None]:
    """Labels `(N,)` int64 of a split, and the names of the classes.

    Plain integers are counted on the training split and named by their number; other splits of such data have
    no names.

    Raises:
        ValueError: If a label is missing or negative, as in test sets whose labels are hidden.
    """
    found = rows[column][:]
    if None in found or not all(isinstance(label, int) for label in found):
        raise ValueError(f"label_column={column!r} of split {split!r} holds values that are no integers.")
    labels = torch.tensor(found, dtype=torch.int64)
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(
            f"label_column={column!r} of split {split!r} holds {int(labels.min())}, a hidden label; "
            "pass a data_dir= whose files have all labels."
        )
    names = getattr(rows.features[column], "names", None)
    if names is None and split == "train":
        names = [str(label) for label in range(int(labels.max()) + 1)]
    return labels, names
