"""Low data, class imbalance and label noise, drawn by a seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .splits import Split

Count = int | Sequence[int]


@dataclass(frozen=True)
class Degradation:
    """What is taken from a classification set, and how its labels are spoiled.

    The protocols of Hu et al. (NeurIPS 2019) are, after their code, `train_per_class=40, val_per_class=2` (SST-5),
    `train_per_class=40, val_per_class=5` (TREC), and `classes=[0, 1], train_per_class=1000, minority_rate=0.02,
    val_per_class=10` (SST-2 and two classes of CIFAR-10). The test set only loses the classes that are not kept.

    Guarantees:
        - Exactly the asked number of examples of each class, or an error.
        - The subset depends on `seed` and the labels alone; another seed draws another one. With one seed, a
          smaller subset lies inside a larger one.
        - Noise changes training labels only: `label_noise` times their number, rounded, are redrawn.

    Args:
        classes: Classes to keep, renumbered from 0 in this order; None keeps all.
        train_per_class: Training examples of each class, one number or one per class; None keeps all.
        val_per_class: Validation examples of each class, one number or one per class; None keeps all.
        minority_rate: Training examples of `minority_class` over those of the others, in (0, 1): it has
            int(train_per_class · minority_rate), as in the published code. None for balance.
        minority_class: Class that `minority_rate` thins out, numbered after `classes`.
        label_noise: Part of the training labels that is redrawn uniformly over all classes, in [0, 1]. One label in
            `num_classes` of these comes out as it was.
        seed: Seed of the subsets and of the noise.

    Raises:
        ValueError: If an argument is out of its range, or if they contradict each other.
    """

    classes: Sequence[int] | None = None
    train_per_class: Count | None = None
    val_per_class: Count | None = None
    minority_rate: float | None = None
    minority_class: int = 0
    label_noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what has no meaning."""
        if self.classes is not None and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            raise ValueError(f"classes={list(self.classes)} must be two or more different classes.")
        for name, count in (("train_per_class", self.train_per_class), ("val_per_class", self.val_per_class)):
            if count is not None and min([count] if isinstance(count, int) else count, default=0) < 1:
                raise ValueError(f"{name}={count} must be at least 1 for each class.")
        if self.minority_rate is not None:
            if not 0 < self.minority_rate < 1:
                raise ValueError(f"minority_rate={self.minority_rate} must lie in (0, 1).")
            if not isinstance(self.train_per_class, int):
                raise ValueError(
                    f"minority_rate={self.minority_rate} thins out one class of equal ones; pass train_per_class= "
                    f"as one number instead of {self.train_per_class}, or the counts themselves and no rate."
                )
            if int(self.train_per_class * self.minority_rate) < 1:
                raise ValueError(
                    f"minority_rate={self.minority_rate} of train_per_class={self.train_per_class} leaves no "
                    "example of the minority; raise one of them."
                )
        elif self.minority_class != 0:
            raise ValueError(f"minority_class={self.minority_class} does nothing alone; pass minority_rate= too.")
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"label_noise={self.label_noise} must lie in [0, 1].")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be at least 0.")

    def keep(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names of the kept classes in their new order.

        Raises:
            ValueError: If a kept class does not exist.
        """
        if self.classes is None:
            return tuple(names)
        if unknown := [label for label in self.classes if not 0 <= label < len(names)]:
            raise ValueError(
                f"classes={list(self.classes)}: {unknown} is outside of the classes 0 to {len(names) - 1}."
            )
        return tuple(names[label] for label in self.classes)

    def choose(self, labels: Tensor, num_classes: int, split: Split) -> tuple[Tensor, Tensor]:
        """Positions of the chosen examples and their labels.

        Args:
            labels: Classes `(N,)` as the data set numbers them.
            num_classes: Number of kept classes.
            split: The part of the data set.

        Returns:
            Ascending positions `(n,)`, and the renumbered labels `(n,)` there, both int64.

        Raises:
            ValueError: If a class has fewer examples than asked for, or the counts are not one per class.
        """
        kept = list(range(num_classes)) if self.classes is None else list(self.classes)
        counts = self._counts(num_classes, split)
        renumbered = torch.full_like(labels, -1)
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        for new, old in enumerate(kept):
            members = (labels == old).nonzero().flatten()
            renumbered[members] = new
            chosen[members if counts is None else self._draw(members, counts[new], old, split)] = True
        positions = chosen.nonzero().flatten()
        return positions, renumbered[positions]

    def redraw(self, labels: Tensor, num_classes: int) -> Tensor:
        """Labels `(N,)` of which round(label_noise · N) are redrawn uniformly; the input stays as it is."""
        random = np.random.default_rng([self.seed, 0])
        count = round(self.label_noise * len(labels))
        positions = torch.from_numpy(random.permutation(len(labels))[:count])
        return labels.index_copy(0, positions, torch.from_numpy(random.integers(0, num_classes, count)))

    def _counts(self, num_classes: int, split: Split) -> list[int] | None:
        name = {"train": "train_per_class", "validation": "val_per_class"}.get(split)
        count = None if name is None else getattr(self, name)
        if count is None:
            return None
        counts = [count] * num_classes if isinstance(count, int) else list(count)
        if len(counts) != num_classes:
            raise ValueError(f"{name}={counts} must have one number for each of the {num_classes} classes.")
        if split == "train" and self.minority_rate is not None:
            if not 0 <= self.minority_class < num_classes:
                raise ValueError(f"minority_class={self.minority_class} must lie in 0 to {num_classes - 1}.")
            counts[self.minority_class] = int(counts[self.minority_class] * self.minority_rate)
        return counts

    def _draw(self, members: Tensor, count: int, label: int, split: Split) -> Tensor:
        if len(members) < count:
            name = "train_per_class" if split == "train" else "val_per_class"
            raise ValueError(
                f"{name} asks for {count} examples of class {label}, but its {split} part has {len(members)}; "
                f"ask for fewer{', or raise val_fraction' if split == 'validation' else ''}."
            )
        random = np.random.default_rng([self.seed, 1 + (split == "validation"), label])
        return members[torch.from_numpy(random.permutation(len(members))[:count])]
