"""Both retrievals of a set whose images arrive in batches, without a matrix of all scores."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lit_methods.image_text.functional import CaptionUnits, UnitTable, score_chunks, t2i_scores
from lit_methods.image_text.matcher import KnowledgeMatcher
from lit_methods.image_text.metrics import RetrievalRanks, Ties, recall_sum
from lit_methods.image_text.ranks import Rivals, best_truth, count_rivals

_BLOCK = 1024


class StreamingRetrieval:
    """Takes all captions, then images batch by batch, and ranks each for the other.

    Captions are ranked for an image at once. Images are ranked for a caption at the end, from the best cosine of each
    unit in each image: `(V + C) x I` values instead of `T x I` scores. Under DDP each process takes other images, and
    only truths and counts travel.

    Args:
        matcher: Scores them.
        captions: The texts.
        image: Position of each caption's image `(T,)`.
        folds: Consecutive parts of equal size that are evaluated alone and averaged, such as 5 on MSCOCO's 1K.
        ties: As in `RetrievalRanks`.

    Guarantees:
        - Neither the batches nor the number of processes change a rank, to rounding of the scores.
        - An image that a sampler repeats counts once.
    """

    def __init__(
        self, matcher: KnowledgeMatcher, captions: list[str], image: Tensor, folds: int = 1, ties: Ties = "mean"
    ) -> None:
        self.matcher, self.ties = matcher, ties
        self.units: CaptionUnits = matcher.parse(captions)
        self.table: UnitTable = matcher.table(self.units)
        device = self.table.directions.device
        self.image = image.to(device)
        self.num_images = int(image.max()) + 1
        if not 1 <= folds <= self.num_images:
            raise ValueError(f"folds={folds} must lie in 1 to {self.num_images}, the number of images.")
        self.folds = folds
        self.i2t = RetrievalRanks(ties=ties).to(device)
        self._kept: list[Tensor] = []
        self._index: list[Tensor] = []

    @property
    def num_silent(self) -> int:
        """Captions without a known word."""
        return int((self.units.counts == 0).sum())

    def add(self, regions: Tensor, mask: Tensor | None, index: Tensor) -> None:
        """Ranks the captions for some images.

        Args:
            regions: Region features `(B, R, D)`.
            mask: True where a region is real `(B, R)`; None where all are.
            index: Position of each image `(B,)`.
        """
        pooling, table = self.matcher.pooling, self.table
        index = index.to(self.image.device)
        self._index.append(index)
        mapped = self.matcher.map_regions(regions)
        for chunk in score_chunks(mapped, table, mask, self.matcher.memory_mib, with_i2t=pooling != "t2i"):
            own = index[chunk.start : chunk.start + chunk.maxima.shape[1]]
            scores = chunk.i2t
            if pooling in ("t2i", "sum"):
                by_unit = t2i_scores(chunk.maxima, table.unit, table.offsets).T
                scores = by_unit if scores is None else scores + by_unit
            if scores is None:
                raise RuntimeError(f"pooling={pooling!r} gave no scores.")
            self._kept.append(chunk.maxima if pooling in ("matched", "t2i") else scores.T)
            self._rank_captions(scores, own)

    def compute(self) -> dict[str, Tensor]:
        """`t2i_R@K`, `i2t_R@K`, `t2i_medR` and so on, and `rsum`.

        Raises:
            ValueError: If no image, or no caption of one, was seen.
        """
        t2i = self._rank_images().compute()
        i2t = self.i2t.compute()
        named = {f"{way}_{name}": value for way, found in (("t2i", t2i), ("i2t", i2t)) for name, value in found.items()}
        return {**named, "rsum": recall_sum(t2i, i2t)}

    def _fold(self, image: Tensor) -> Tensor:
        return image * self.folds // self.num_images

    def _rank_captions(self, scores: Tensor, own: Tensor) -> None:
        truth = best_truth(scores, own, self.image)
        rivals = count_rivals(scores, truth, own, self.image, self._fold(own), self._fold(self.image))
        known = truth.isfinite()
        if known.any():
            query = own[known]
            self.i2t.update(Rivals(rivals.greater[known], rivals.equal[known]), query, self._fold(query))

    def _rank_images(self) -> RetrievalRanks:
        metric = RetrievalRanks(ties=self.ties).to(self.image.device)
        kept, index = self._own_images()
        for start in range(0, len(self.image), _BLOCK):
            captions = torch.arange(start, min(start + _BLOCK, len(self.image)), device=self.image.device)
            scores = self._scores_of(captions, kept)
            query = self.image[captions]
            truth = best_truth(scores, query, index) if len(index) else scores.new_full((len(captions),), -torch.inf)
            truth = _reduced(truth, dist.ReduceOp.MAX)
            rivals = count_rivals(scores, truth, query, index, self._fold(query), self._fold(index))
            rivals = Rivals(*(_reduced(count, dist.ReduceOp.SUM) for count in rivals))
            known = truth.isfinite()
            if known.any():
                counts = Rivals(rivals.greater[known], rivals.equal[known])
                metric.update(counts, captions[known], self._fold(query[known]))
        return metric

    def _scores_of(self, captions: Tensor, kept: Tensor) -> Tensor:
        if self.matcher.pooling not in ("matched", "t2i"):
            return kept[captions]
        first, last = int(captions[0]), int(captions[-1]) + 1
        offsets = self.table.offsets[first : last + 1]
        return t2i_scores(kept, self.table.unit[offsets[0] : offsets[-1]], offsets - offsets[0])

    def _own_images(self) -> tuple[Tensor, Tensor]:
        """What was kept of the images of this process, each image at one process only."""
        device = self.image.device
        rows = self.table.num_rows if self.matcher.pooling in ("matched", "t2i") else len(self.image)
        kept = torch.cat(self._kept, dim=1) if self._kept else torch.zeros(rows, 0, device=device)
        index = torch.cat(self._index) if self._index else torch.zeros(0, dtype=torch.int64, device=device)
        rank = dist.get_rank() if dist.is_initialized() else 0
        owner = torch.full((self.num_images,), torch.iinfo(torch.int64).max, device=device)
        owner[index] = rank
        owner = _reduced(owner, dist.ReduceOp.MIN)
        order = index.sort(stable=True).indices
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[order].diff() != 0
        chosen = order[first]
        chosen = chosen[owner[index[chosen]] == rank]
        return kept[:, chosen], index[chosen]


def _reduced(values: Tensor, operation: Any) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(values, operation)
    return values
