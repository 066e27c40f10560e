"""Knowledge from a stream of named regions, in one pass and without holding a region (MACK, Section 2(a))."""

import string
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from lit_methods.image_text.knowledge import KnowledgeBase

_SEPARATORS = str.maketrans(string.punctuation, " " * len(string.punctuation))


def name_words(name: str) -> list[str]:
    """Words of a region's name: punctuation becomes space; case and form stay, as in the authors' recipe."""
    return name.translate(_SEPARATORS).split()


class KnowledgeBuilder:
    """Adds up region features by the words of their names.

    A name of several words gives its region to each of them: that is how adjectives come by a prototype. Sums are
    float64; those of one call are float32, over at most `block` regions at a time.

    Args:
        feature_size: Feature size D.
        lower: Whether names are lower-cased first; the authors' recipe does not.
        normalize_features: Whether each region is normalized before the mean; the authors' recipe does not.
        exclude_image_ids: Images whose regions are left out, such as those of a test set.

    Guarantees:
        - Neither the order of the regions nor how they are split over calls or builders matters, to rounding.
        - `state_dict` and `load_state_dict` go on where a build was broken off.
        - A block of regions with one that is not finite is refused before any of it is added.

    Raises:
        ValueError: If `feature_size` is below 1.
    """

    block = 32768  # each block writes one row per word, so that larger ones spare memory traffic
    tile = 1 << 18  # values of one float32 sum, small enough that its memory is used again and stays in a cache

    def __init__(
        self,
        feature_size: int,
        lower: bool = False,
        normalize_features: bool = False,
        exclude_image_ids: Collection[int | str] = (),
    ) -> None:
        if feature_size < 1:
            raise ValueError(f"feature_size={feature_size} must be at least 1.")
        self.feature_size, self.lower, self.normalize_features = feature_size, lower, normalize_features
        self.exclude_image_ids = frozenset(exclude_image_ids)
        self._ids: dict[str, int] = {}
        self._names: dict[str, tuple[int, ...]] = {}
        self._sums = torch.zeros(0, feature_size, dtype=torch.float64)
        self._counts = torch.zeros(3, 0, dtype=torch.int64)

    def add(self, features: Tensor, names: Sequence[str], image_ids: Sequence[int | str] | None = None) -> None:
        """Adds regions.

        Args:
            features: Region features `(N, D)`.
            names: Name of each region.
            image_ids: Image of each region, for `exclude_image_ids`.

        Raises:
            ValueError: If sizes disagree, a feature is not finite, or images are excluded and not named.
        """
        if features.ndim != 2 or features.shape[1] != self.feature_size:
            raise ValueError(f"features is {tuple(features.shape)}; pass (N, {self.feature_size}).")
        if len(features) != len(names) or (image_ids is not None and len(image_ids) != len(names)):
            raise ValueError(f"features has {len(features)} rows, names {len(names)}; each region needs its own.")
        if self.exclude_image_ids:
            if image_ids is None:
                raise ValueError("exclude_image_ids is set; pass image_ids= with every call of add.")
            kept = [row for row, image in enumerate(image_ids) if image not in self.exclude_image_ids]
            features, names = features[kept], [names[row] for row in kept]
        for start in range(0, len(names), self.block):
            self._add_block(features[start : start + self.block].float(), names[start : start + self.block])

    def build(self, min_count: int = 1) -> KnowledgeBase:
        """The means so far.

        Args:
            min_count: Regions that a word needs.

        Raises:
            ValueError: If no word has that many.
        """
        if not self._ids:
            raise ValueError("No named region was added; there is no knowledge to build.")
        prototypes = (self._sums[: len(self._ids)] / self._counts[0, : len(self._ids)].unsqueeze(1)).float()
        base = KnowledgeBase(list(self._ids), prototypes, *self._counts[:, : len(self._ids)].clone())
        return base if min_count <= 1 else base.subset(min_count)

    def merge(self, other: "KnowledgeBuilder") -> None:
        """Adds another builder's regions, such as those of another process.

        Raises:
            ValueError: If the feature sizes differ.
        """
        if other.feature_size != self.feature_size:
            raise ValueError(f"other has feature size {other.feature_size}, this builder {self.feature_size}.")
        rows = torch.tensor([self._row(word) for word in other._ids], dtype=torch.int64)
        self._reserve()
        self._sums.index_add_(0, rows, other._sums[: len(rows)])
        self._counts.index_add_(1, rows, other._counts[:, : len(rows)])

    def all_reduce(self) -> None:
        """Adds up the builders of all processes, each of which then holds the whole."""
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, self.state_dict())
        self._ids, self._names = {}, {}
        self._sums, self._counts = self._sums[:0], self._counts[:, :0]
        for state in states:
            part = KnowledgeBuilder(self.feature_size)
            part.load_state_dict(state)
            self.merge(part)

    def state_dict(self) -> dict[str, Any]:
        """Words, sums and counts so far."""
        size = len(self._ids)
        return {"words": list(self._ids), "sums": self._sums[:size].clone(), "counts": self._counts[:, :size].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self._ids = {word: row for row, word in enumerate(state["words"])}
        self._names = {}
        self._sums, self._counts = state["sums"].clone(), state["counts"].clone()

    def _add_block(self, features: Tensor, names: Sequence[str]) -> None:
        suspects = (~features.sum(dim=1).isfinite()).nonzero().squeeze(1)  # a sum may overflow where no feature does
        bad = suspects[(~features[suspects].isfinite()).any(dim=1)]
        if len(bad):
            raise ValueError(f"features of a region named {names[int(bad[0])]!r} are NaN or infinite; extract again.")
        if self.normalize_features:
            features = normalize(features, dim=1)
        words = [self._words(name) for name in names]
        flat = torch.tensor(list(chain.from_iterable(words)), dtype=torch.int64)
        if not len(flat):
            return
        self._reserve()
        lengths = torch.tensor([len(ids) for ids in words])
        region = torch.arange(len(words)).repeat_interleave(lengths)
        word, order = flat.sort(stable=True)
        present, sizes = torch.unique_consecutive(word, return_counts=True)
        ends = sizes.cumsum(0)
        starts, rows = ends - sizes, max(1, self.tile // self.feature_size)
        for start in range(0, len(present), rows):
            part = slice(start, min(start + rows, len(present)))
            first, last = int(starts[start]), int(ends[part.stop - 1])
            sums = embedding_bag(region[order[first:last]], features, starts[part] - first, mode="sum").double()
            self._sums.index_add_(0, present[part], sums)
        heads = torch.tensor([ids[-1] for ids in words if ids])
        self._counts[0].index_add_(0, present, sizes)
        self._counts[1] += torch.bincount(heads, minlength=self._counts.shape[1])
        self._counts[2] = self._counts[0] - self._counts[1]

    def _words(self, name: str) -> tuple[int, ...]:
        found = self._names.get(name)
        if found is None:
            found = self._names[name] = tuple(
                self._row(word) for word in name_words(name.lower() if self.lower else name)
            )
        return found

    def _row(self, word: str) -> int:
        return self._ids.setdefault(word, len(self._ids))

    def _reserve(self) -> None:
        if len(self._sums) < len(self._ids):
            size = max(5 * len(self._sums) // 4, len(self._ids)) - len(self._sums)
            self._sums = torch.cat([self._sums, self._sums.new_zeros(size, self.feature_size)])
            self._counts = torch.cat([self._counts, self._counts.new_zeros(3, size)], dim=1)


def build_knowledge(
    stream: Iterable[tuple[Tensor, Sequence[str]]], min_count: int = 1, **options: Any
) -> KnowledgeBase:
    """Knowledge from batches of region features `(N, D)` and their names.

    Args:
        stream: The batches.
        min_count: Regions that a word needs.
        **options: Arguments of `KnowledgeBuilder` beside the feature size.

    Raises:
        ValueError: If the stream is empty, or as `KnowledgeBuilder`.
    """
    builder: KnowledgeBuilder | None = None
    for features, names in stream:
        builder = builder or KnowledgeBuilder(features.shape[1], **options)
        builder.add(features, names)
    if builder is None:
        raise ValueError("stream holds no batch of named regions; there is no knowledge to build.")
    return builder.build(min_count)
