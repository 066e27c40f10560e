"""Scores of images against captions by their regions and words, and the cycle between the two.

A score is a mean over one side of the maximum over the other, of the cosines between unit vectors and regions:
text-to-image pooling (t2i) takes the best region of each unit, image-to-text pooling (i2t) the best unit of each
region. Shapes: I images, R regions, D feature size, T captions, Q units, K words; chunks of B images.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from lit_methods.image_text._units import CaptionUnits, UnitTable

__all__ = [
    "CaptionUnits",
    "Chunk",
    "Pooling",
    "UnitTable",
    "chunk_size",
    "cycle_logits",
    "i2t_scores",
    "match",
    "score_chunks",
    "similarity_table",
    "t2i_scores",
    "unit_maxima",
]

Pooling = Literal["matched", "t2i", "i2t", "sum"]

_TILE_BYTES = {"cpu": 1 << 20}  # about one core's cache: the running maximum is read and written once per unit
_DEVICE_TILE_BYTES = 1 << 28


class Chunk(NamedTuple):
    """Scores of consecutive images.

    Attributes:
        start: Position of the first image.
        maxima: Best cosine of each row of the table in each image `(V + C, B)`.
        i2t: Scores by image-to-text pooling `(B, T)`, or None where they were not asked for.
    """

    start: int
    maxima: Tensor
    i2t: Tensor | None


def similarity_table(regions: Tensor, table: UnitTable) -> Tensor:
    """Cosine of each word in use and each composite unit with each region.

    Args:
        regions: Normalized regions `(B, R, D)`, zero where padded.
        table: Words and composites.

    Returns:
        Cosines `(V + C, B, R)`, unit by unit, so that a caption gathers whole rows.
    """
    flat = regions.flatten(0, 1)
    words = len(table.directions)
    out = flat.new_empty(table.num_rows, len(flat))
    torch.mm(table.directions, flat.T, out=out[:words])
    if table.num_rows > words:
        composites = out[words:]
        torch.index_select(out[:words], 0, table.head, out=composites)
        composites.mul_(table.weights[0]).addcmul_(out[:words].index_select(0, table.modifier), table.weights[1])
    return out.view(table.num_rows, *regions.shape[:2])


def unit_maxima(similarities: Tensor, mask: Tensor | None = None) -> Tensor:
    """Best region of each unit in each image.

    Args:
        similarities: Cosines `(Q, B, R)`.
        mask: True where a region is real `(B, R)`; None where all are.

    Returns:
        Maxima `(Q, B)`.
    """
    if mask is not None:
        similarities = similarities.masked_fill(~mask, -torch.inf)
    return similarities.amax(dim=2)


def t2i_scores(maxima: Tensor, unit: Tensor, offsets: Tensor) -> Tensor:
    """Text-to-image pooling: mean over a caption's units of their best region.

    Args:
        maxima: Best cosine of each unit in each image `(Q, B)`.
        unit: Row of each mention `(M,)`.
        offsets: Where each caption begins, and the end `(T + 1,)`.

    Returns:
        Scores `(T, B)`; zero for a caption without units.
    """
    if not len(unit):
        return maxima.new_zeros(len(offsets) - 1, maxima.shape[1])
    return embedding_bag(unit, maxima, offsets[:-1], mode="mean")


def i2t_scores(similarities: Tensor, table: UnitTable, mask: Tensor | None = None) -> Tensor:
    """Image-to-text pooling: mean over an image's regions of their best unit.

    A caption without units receives each image's mean over the other captions, so that it ranks amid them.

    Args:
        similarities: Cosines `(Q, B, R)`, zero for padded regions.
        table: The captions whose rows are gathered.
        mask: True where a region is real `(B, R)`; None where all are.

    Returns:
        Scores `(T, B)`.
    """
    images, regions = similarities.shape[1:]
    rows = similarities.view(len(similarities), images * regions)
    scores = similarities.new_zeros(table.num_captions, images)
    count = torch.full((images,), regions, device=rows.device) if mask is None else mask.sum(dim=1)
    limit = _TILE_BYTES.get(rows.device.type, _DEVICE_TILE_BYTES)
    tile = max(1, limit // max(1, rows.shape[1] * rows.element_size()))
    for captions, units in table.groups:
        for positions, ids in zip(torch.split(captions, tile), torch.split(units, tile), strict=True):
            best = rows.index_select(0, ids[:, 0])
            other = torch.empty_like(best) if units.shape[1] > 1 else best
            for column in range(1, units.shape[1]):
                torch.index_select(rows, 0, ids[:, column], out=other)
                torch.maximum(best, other, out=best)
            scores[positions] = best.view(len(positions), images, regions).sum(dim=2) / count
    silent = table.offsets.diff() == 0
    if silent.any() and not silent.all():
        scores[silent] = scores[~silent].mean(dim=0)
    return scores


def chunk_size(table: UnitTable, num_regions: int, dtype: torch.dtype, memory_mib: float, with_i2t: bool = True) -> int:
    """Images that one chunk may hold within a budget, at least 1.

    Args:
        table: Words, composites and captions.
        num_regions: Regions R of an image.
        dtype: Type of the regions.
        memory_mib: Budget in MiB for similarities, normalized regions and scores; the regions given are not counted.
        with_i2t: Whether image-to-text scores are held too.
    """
    values = num_regions * (table.num_rows + len(table.head) + table.directions.shape[1])
    values += table.num_rows + (2 * table.num_captions if with_i2t else 0)
    spare = memory_mib * 2**20 - _TILE_BYTES["cpu"] * 3
    return max(1, int(spare // (values * dtype.itemsize)))


@torch.no_grad()
def score_chunks(
    regions: Tensor,
    table: UnitTable,
    mask: Tensor | None = None,
    memory_mib: float = 512.0,
    with_i2t: bool = True,
) -> Iterator[Chunk]:
    """Scores images in chunks of a byte budget, without gradients; what comes out does not depend on the chunks.

    Args:
        regions: Region features `(I, R, D)` in any scale; normalized here.
        table: The captions, of the same type and device.
        mask: True where a region is real `(I, R)`; None where all are.
        memory_mib: Budget of one chunk in MiB.
        with_i2t: Whether to pool over regions too.

    Yields:
        One `Chunk` after another.

    Raises:
        ValueError: If feature sizes differ, a value is not finite, or an image has no region.
    """
    _check_regions(regions, table, mask)
    step = chunk_size(table, regions.shape[1], table.directions.dtype, memory_mib, with_i2t)
    for start in range(0, len(regions), step):
        part = regions[start : start + step].to(table.directions.dtype)
        chunk_mask = None if mask is None else mask[start : start + step]
        if chunk_mask is not None:
            part = part.masked_fill(~chunk_mask.unsqueeze(2), 0)
        similarities = similarity_table(normalize(part, dim=2), table)
        maxima = unit_maxima(similarities, chunk_mask)
        if not maxima.isfinite().all():  # NaN and infinity come through; the features themselves are far more values
            bad = start + int((~maxima.isfinite()).any(dim=0).nonzero()[0])
            raise ValueError(f"regions of image {bad} hold NaN or infinite features; extract them again.")
        i2t = i2t_scores(similarities, table, chunk_mask).T if with_i2t else None
        yield Chunk(start, maxima, i2t)


@torch.no_grad()
def match(
    regions: Tensor,
    table: UnitTable,
    mask: Tensor | None = None,
    pooling: Pooling = "matched",
    memory_mib: float = 512.0,
) -> tuple[Tensor, Tensor]:
    """All scores, one matrix for each direction of retrieval, without gradients.

    Args:
        regions: Region features `(I, R, D)`.
        table: The captions.
        mask: True where a region is real `(I, R)`; None where all are.
        pooling: "matched" pools each direction by its own principle; "t2i" and "i2t" use one for both; "sum" adds them.
        memory_mib: Budget of one chunk in MiB, the two results not counted.

    Returns:
        Scores to find images for texts, and texts for images, both `(I, T)`.

    Raises:
        ValueError: As `score_chunks`, or for an unknown `pooling`.
    """
    if pooling not in ("matched", "t2i", "i2t", "sum"):
        raise ValueError(f"pooling={pooling!r} must be 'matched', 't2i', 'i2t' or 'sum'.")
    if not len(regions):
        raise ValueError("regions holds no image; there is nothing to score.")
    shape = (len(regions), table.num_captions)
    by_unit = None if pooling == "i2t" else table.directions.new_empty(shape)
    by_region = None if pooling == "t2i" else table.directions.new_empty(shape)
    for chunk in score_chunks(regions, table, mask, memory_mib, with_i2t=by_region is not None):
        rows = slice(chunk.start, chunk.start + chunk.maxima.shape[1])
        if by_unit is not None:
            by_unit[rows] = t2i_scores(chunk.maxima, table.unit, table.offsets).T
        if by_region is not None and chunk.i2t is not None:
            by_region[rows] = chunk.i2t
    if by_unit is None or by_region is None:
        only = by_region if by_unit is None else by_unit
        return only, only  # type: ignore[return-value]  # pooling names at least one
    if pooling == "sum":
        by_unit += by_region
        return by_unit, by_unit
    return by_unit, by_region


def cycle_logits(words: Tensor, regions: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Each word rebuilt from regions, and each region from words, compared with all of its kind.

    With `S = words regions^T / t` the rebuilt words are `softmax(S) regions`, the rebuilt regions `softmax(S^T) words`.

    Args:
        words: Transformed, normalized unit vectors `(J, D)`.
        regions: Transformed, normalized regions `(N, D)`.
        temperature: Divisor t of all four products.

    Returns:
        Logits `(J, J)` and `(N, N)`: row i should be largest in column i.
    """
    similarities = words @ regions.T / temperature
    rebuilt_words = similarities.softmax(dim=1) @ regions
    rebuilt_regions = similarities.T.softmax(dim=1) @ words
    return words @ rebuilt_words.T / temperature, regions @ rebuilt_regions.T / temperature


def _check_regions(regions: Tensor, table: UnitTable, mask: Tensor | None) -> None:
    size = table.directions.shape[1]
    if regions.ndim != 3 or regions.shape[2] != size:
        raise ValueError(f"regions is {tuple(regions.shape)}; pass (I, R, {size}), the knowledge's feature size.")
    if regions.shape[1] == 0:
        raise ValueError(f"regions is {tuple(regions.shape)}: an image needs at least one region.")
    if mask is None:
        return
    if mask.shape != regions.shape[:2]:
        raise ValueError(f"mask is {tuple(mask.shape)}; pass {tuple(regions.shape[:2])}, one flag per region.")
    empty = (~mask.any(dim=1)).nonzero()
    if len(empty):
        raise ValueError(f"image {int(empty[0])} has no region; leave it out, or give it its whole picture as one.")
