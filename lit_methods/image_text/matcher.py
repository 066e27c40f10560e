"""Knowledge, parser and map together: captions and regions in, scores out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_methods.errors import check_above, check_at_least, check_object
from lit_methods.image_text.functional import CaptionUnits, Pooling, UnitTable, match
from lit_methods.image_text.knowledge import KnowledgeBase
from lit_methods.image_text.parsing import CaptionParser, KnowledgeParser
from lit_methods.image_text.transforms import FeatureMap


class KnowledgeMatcher(nn.Module):
    """Scores images against captions by what the knowledge base knows of their words.

    Args:
        knowledge: The dictionary.
        parser: Turns captions into units; None for `KnowledgeParser()`.
        transform: Maps regions and words before they are compared; None leaves them as they are.
        pooling: As in `functional.match`.
        modifier_weight: Weight of an adjective in its sum with a noun.
        memory_mib: Budget of one chunk of images in MiB.

    Guarantees:
        - A caption without a known word scores a constant, and `parse` counts it.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        knowledge: KnowledgeBase,
        parser: CaptionParser | None = None,
        transform: FeatureMap | None = None,
        pooling: Pooling = "matched",
        modifier_weight: float = 1.0,
        memory_mib: float = 512.0,
    ) -> None:
        super().__init__()
        if pooling not in ("matched", "t2i", "i2t", "sum"):
            raise ValueError(f"pooling={pooling!r} must be 'matched', 't2i', 'i2t' or 'sum'.")
        check_at_least("modifier_weight", modifier_weight)
        check_above("memory_mib", memory_mib)
        check_object("knowledge", knowledge, KnowledgeBase, "KnowledgeBase.load(folder)")
        check_object("transform", transform, FeatureMap, "SharedLinear(feature_size)")
        if parser is not None and not callable(parser):
            raise TypeError(f"parser={parser!r:.80} must be a function of caption and knowledge, as KnowledgeParser().")
        self.knowledge = knowledge
        self.transform = FeatureMap() if transform is None else transform
        self.parser: CaptionParser = KnowledgeParser() if parser is None else parser
        self.pooling: Pooling = pooling
        self.modifier_weight, self.memory_mib = modifier_weight, memory_mib
        self._parsed: dict[str, list[tuple[int, int]]] = {}

    def parse(self, captions: Sequence[str]) -> CaptionUnits:
        """Units of captions; each caption is parsed once, however often it comes.

        Raises:
            RuntimeError: If there is no knowledge yet.
        """
        if not len(self.knowledge):
            raise RuntimeError(
                "The knowledge base holds no word. Pass knowledge=, or a datamodule with a knowledge_dataloader."
            )
        return CaptionUnits.from_mentions([self._mentions(caption) for caption in captions])

    def map_regions(self, regions: Tensor) -> Tensor:
        """Regions `(..., D)` where words are compared with them.

        Raises:
            ValueError: If their feature size is not the knowledge's.
        """
        if regions.shape[-1] != self.knowledge.feature_size:
            raise ValueError(
                f"regions have {regions.shape[-1]} features and the knowledge {self.knowledge.feature_size}; both must "
                "come from the same encoder."
            )
        return self.transform.regions(regions)

    def table(self, captions: CaptionUnits) -> UnitTable:
        """Captions made ready for scoring, their words mapped."""
        return UnitTable.build(*self._mapped(captions), self.modifier_weight)

    def unit_vectors(self, captions: CaptionUnits) -> Tensor:
        """Mapped vectors of the distinct units `(Q, D)`, not normalized."""
        units, words = self._mapped(captions)
        return units.vectors(words, self.modifier_weight)

    def unit_names(self, captions: CaptionUnits, position: int) -> list[str]:
        """Units of one caption in words, adjective first."""
        rows = captions.unit[captions.offsets[position] : captions.offsets[position + 1]]
        words = self.knowledge.words
        pairs = zip(captions.modifier[rows].tolist(), captions.head[rows].tolist(), strict=True)
        return [f"{words[modifier]} {words[head]}" if modifier >= 0 else words[head] for modifier, head in pairs]

    def forward(self, regions: Tensor, captions: Sequence[str], mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores of images against captions.

        Args:
            regions: Region features `(I, R, D)`.
            captions: T captions.
            mask: True where a region is real `(I, R)`; None where all are.

        Returns:
            Scores to find images for texts, and texts for images, both `(I, T)`.
        """
        table = self.table(self.parse(captions))
        return match(self.map_regions(regions), table, mask, self.pooling, self.memory_mib)

    def _mapped(self, captions: CaptionUnits) -> tuple[CaptionUnits, Tensor]:
        """Captions in terms of the words that they use, and those words mapped."""
        prototypes = self.knowledge.prototypes
        head, modifier = captions.head.to(prototypes.device), captions.modifier.to(prototypes.device)
        composite = modifier >= 0
        used, rows = torch.unique(torch.cat([head, modifier[composite]]), return_inverse=True)
        own = modifier.masked_scatter(composite, rows[len(head) :])
        units = CaptionUnits(rows[: len(head)], own, captions.unit, captions.offsets)
        return units, self.transform.words(prototypes[used])

    def _mentions(self, caption: str) -> list[tuple[int, int]]:
        found = self._parsed.get(caption)
        if found is None:
            lookup = self.knowledge.lookup
            units = self.parser(caption, self.knowledge)
            found = [(lookup(u.noun), -1 if u.adjective is None else lookup(u.adjective)) for u in units]
            found = self._parsed[caption] = [mention for mention in found if mention[0] >= 0]
        return found
