"""Images to search by text, with the region that answered each word."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lit_methods.image_text.functional import score_chunks, t2i_scores
from lit_methods.image_text.matcher import KnowledgeMatcher


class Evidence(NamedTuple):
    """Why images were found for one caption.

    Attributes:
        units: Its w units in words.
        region: Best region of each unit in each found image `(w, k)`.
        cosine: Its cosine `(w, k)`; their mean over the units is the score.
    """

    units: list[str]
    region: Tensor
    cosine: Tensor


class Found(NamedTuple):
    """Images for B captions, best first.

    Attributes:
        image: Position of each image, as it was added `(B, k)`.
        score: Its score by text-to-image pooling `(B, k)`.
        evidence: One for each caption.
    """

    image: Tensor
    score: Tensor
    evidence: list[Evidence]


class Gallery:
    """Holds mapped regions in memory and searches them, a caption or thousands at a time.

    Args:
        matcher: Scores them.
    """

    def __init__(self, matcher: KnowledgeMatcher) -> None:
        self.matcher = matcher
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, regions: Tensor, mask: Tensor, index: Tensor) -> None:
        """Adds images: features `(B, R, D)`, mask `(B, R)` and positions `(B,)`."""
        mapped = normalize(self.matcher.map_regions(regions), dim=2)
        self._batches.append((mapped.masked_fill(~mask.unsqueeze(2), 0), mask, index.to(mask.device)))

    @torch.no_grad()
    def search(self, captions: Sequence[str], top_k: int = 5) -> Found:
        """Best images for each caption.

        Args:
            captions: B texts.
            top_k: Images k for each; all where there are fewer.

        Raises:
            ValueError: If the gallery is empty or `top_k` is below 1.
        """
        if not self._batches:
            raise ValueError("The gallery holds no image; add some before searching.")
        if top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1.")
        units = self.matcher.parse(captions)
        table = self.matcher.table(units)
        maxima = [
            chunk.maxima
            for regions, mask, _ in self._batches
            for chunk in score_chunks(regions, table, mask, self.matcher.memory_mib, with_i2t=False)
        ]
        scores = t2i_scores(torch.cat(maxima, dim=1), table.unit, table.offsets)
        index = torch.cat([index for _, _, index in self._batches])
        score, place = scores.topk(min(top_k, len(index)), dim=1)
        directions = normalize(self.matcher.unit_vectors(units), dim=1)
        evidence = []
        for position, places in enumerate(place.tolist()):
            own = directions[units.unit[units.offsets[position] : units.offsets[position + 1]].to(directions.device)]
            best = [self._best_region(own, image) for image in places]
            cosine, region = (torch.stack(values, dim=1) for values in zip(*best, strict=True))
            evidence.append(Evidence(self.matcher.unit_names(units, position), region, cosine))
        return Found(index[place], score, evidence)

    def _best_region(self, directions: Tensor, place: int) -> tuple[Tensor, Tensor]:
        for regions, mask, _ in self._batches:
            if place < len(regions):
                cosines = (directions @ regions[place].T).masked_fill(~mask[place], -torch.inf)
                found = cosines.max(dim=1)
                return found.values, found.indices
            place -= len(regions)
        raise IndexError(place)
