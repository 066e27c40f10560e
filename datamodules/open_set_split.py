"""Which images of a labelled set play the labelled, the unlabelled and the validation part of an open-set task."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import DatasetNotFoundError

SIX_ANIMAL_CLASSES = (2, 3, 4, 5, 6, 7)
"""Known classes of the six-animal task on CIFAR-10: bird, cat, deer, dog, frog, horse (Oliver et al. 2018)."""

SIX_ANIMAL_UNLABELED = {
    0.0: (4, 5, 6, 7),
    0.25: (0, 5, 6, 7),
    0.5: (0, 1, 6, 7),
    0.75: (0, 1, 8, 7),
    1.0: (0, 1, 8, 9),
}
"""The four classes of the unlabelled pool by mismatch, which counts those that are no animals."""


@dataclass(frozen=True)
class OpenSetSplit:
    """Positions in the training part of a labelled source, each ascending.

    Attributes:
        known_classes: Classes of the task, in the order of its labels 0 to K - 1.
        labeled: Labelled images.
        unlabeled: Unlabelled images of known and unknown classes.
        val: Held-out images of known classes.
        digest: Fingerprint of the source's labels.
    """

    known_classes: tuple[int, ...]
    labeled: Tensor
    unlabeled: Tensor
    val: Tensor
    digest: str

    @staticmethod
    def make(
        labels: Tensor,
        known_classes: Sequence[int],
        labels_per_class: int,
        unlabeled_classes: Sequence[int] | None = None,
        unlabeled_per_class: int | None = None,
        mismatch: float | None = None,
        val_per_class: int = 0,
        include_labeled: bool = False,
        seed: int = 0,
    ) -> "OpenSetSplit":
        """Draws a split: validation first, then labels, the rest is unlabelled.

        Args:
            labels: Classes of the source `(N,)`.
            known_classes: Classes of the task.
            labels_per_class: Labelled images of each known class.
            unlabeled_classes: Classes of the unlabelled pool; None for all.
            unlabeled_per_class: Most unlabelled images of one class; None for no bound.
            mismatch: Share of images of unknown classes in the pool, which is then as large as the data allow;
                None leaves the classes in the numbers they have.
            val_per_class: Validation images of each known class.
            include_labeled: Whether labelled images are in the pool too.
            seed: Seed of the split; the global random state is neither read nor changed.

        Raises:
            ValueError: If a class does not exist or is too small, or the pool is empty.
        """
        present = set(labels.tolist())
        known = _checked_classes("known_classes", known_classes, present)
        pool_classes = present if unlabeled_classes is None else unlabeled_classes
        pool_classes = _checked_classes("unlabeled_classes", sorted(pool_classes), present)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(labels), generator=generator)
        labeled, val, pool = [], [], []
        for label in sorted(present):
            members = order[labels[order] == label]
            if label in known:
                if len(members) < labels_per_class + val_per_class:
                    raise ValueError(
                        f"labels_per_class={labels_per_class} and val_per_class={val_per_class} need more than the "
                        f"{len(members)} images of class {label}."
                    )
                val.append(members[:val_per_class])
                labeled.append(members[val_per_class : val_per_class + labels_per_class])
                members = members[val_per_class + (0 if include_labeled else labels_per_class) :]
            if label in pool_classes:
                pool.append(members[:unlabeled_per_class])
        unlabeled = torch.cat(pool)
        if mismatch is not None:
            unlabeled = _with_mismatch(unlabeled, torch.isin(labels[unlabeled], torch.tensor(known)), mismatch)
        if not len(unlabeled):
            raise ValueError(
                f"unlabeled_classes={list(pool_classes)} leave no unlabelled image; take more classes or fewer labels."
            )
        return OpenSetSplit(
            known_classes=known,
            labeled=torch.cat(labeled).sort().values,
            unlabeled=unlabeled.sort().values,
            val=torch.cat(val).sort().values,
            digest=_digest(labels),
        )

    def prior(self, labels: Tensor) -> float:
        """Share mu of images of known classes in the unlabelled pool, given the labels of the source `(N,)`."""
        return float(torch.isin(labels[self.unlabeled], torch.tensor(self.known_classes)).float().mean())

    def save(self, path: str | Path) -> None:
        """Writes the split as JSON, whole or not at all."""
        content = {
            "known_classes": list(self.known_classes),
            "digest": self.digest,
            "labeled": self.labeled.tolist(),
            "unlabeled": self.unlabeled.tolist(),
            "val": self.val.tolist(),
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        partial.write_text(json.dumps(content))
        partial.replace(path)

    @staticmethod
    def load(path: str | Path, labels: Tensor) -> "OpenSetSplit":
        """Reads a saved split.

        Args:
            path: The file.
            labels: Classes of the source `(N,)`.

        Raises:
            ValueError: If the file was written for other data.
        """
        content = json.loads(Path(path).read_text())
        if content["digest"] != _digest(labels):
            raise ValueError(f"split_file={path} was written for other data; name another file, or delete this one.")
        parts = {name: torch.tensor(content[name], dtype=torch.int64) for name in ("labeled", "unlabeled", "val")}
        return OpenSetSplit(tuple(content["known_classes"]), **parts, digest=content["digest"])


def read_positions(path: str | Path, pool_size: int) -> Tensor:
    """Reads which images of a pool to keep.

    Args:
        path: JSON file with the size of the pool as `pool` and ascending `positions` in it.
        pool_size: Number of images of the pool that it is to be used on.

    Returns:
        Positions `(N,)`, at least one.

    Raises:
        DatasetNotFoundError: If there is no such file.
        ValueError: If it is of a pool of another size, or keeps nothing.
    """
    if not Path(path).is_file():
        raise DatasetNotFoundError(
            "The positions to keep", [Path(path)], "Run `predict` with RelevanceDiscriminator(selection_file=...)."
        )
    content = json.loads(Path(path).read_text())
    if content["pool"] != pool_size:
        raise ValueError(
            f"pool_file={path} is of a pool of {content['pool']} images, this one has {pool_size}; write it anew with "
            "the same data settings."
        )
    if not content["positions"]:
        raise ValueError(f"pool_file={path} keeps no image of the pool; lower the threshold, or train longer.")
    return torch.tensor(content["positions"], dtype=torch.int64)


def _checked_classes(name: str, classes: Sequence[int], present: set[int]) -> tuple[int, ...]:
    if len(set(classes)) != len(classes) or not classes:
        raise ValueError(f"{name}={list(classes)} must name at least one class, and none twice.")
    if absent := set(classes) - present:
        raise ValueError(f"{name}={list(classes)}: the data have no class {sorted(absent)}, but {sorted(present)}.")
    return tuple(classes)


def _with_mismatch(pool: Tensor, known: Tensor, mismatch: float) -> Tensor:
    if not 0 <= mismatch <= 1:
        raise ValueError(f"mismatch={mismatch} must lie in [0, 1]: the share of images of unknown classes.")
    ours, others = pool[known], pool[~known]
    sizes = [len(part) / share for part, share in ((ours, 1 - mismatch), (others, mismatch)) if share > 0]
    size = int(min(sizes))
    unknown = round(size * mismatch)
    return torch.cat([_spread(ours, size - unknown), _spread(others, unknown)])


def _spread(pool: Tensor, count: int) -> Tensor:
    """`count` of the images, taken evenly over the pool, which is ordered by class."""
    return pool[torch.linspace(0, len(pool) - 1, count).round().long()] if count else pool[:0]


def _digest(labels: Tensor) -> str:
    return hashlib.sha256(labels.to(torch.int64).numpy().tobytes()).hexdigest()[:16]
