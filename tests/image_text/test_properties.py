"""Scores and their pieces for all images, captions and numbers that Hypothesis draws."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from lit_methods.image_text import functional as F
from lit_methods.image_text.reranking import rerank
from tests.image_text.references import naive_scores, unit_vector
from tests.properties import SEED, normal

WORDS, SIZE = 6, 5
MENTION = st.tuples(st.integers(0, WORDS - 1), st.integers(-1, WORDS - 1))
CAPTIONS = st.lists(st.lists(MENTION, max_size=4), max_size=4).map(lambda drawn: [[(0, -1)], *drawn])
SCENES = st.tuples(SEED, st.integers(1, 4), st.integers(1, 5))


def _scene(seed: int, images: int, regions: int) -> tuple[Tensor, Tensor, Tensor]:
    mask = normal(seed + 2, images, regions) > -0.5
    mask[:, 0] = True
    return 3 * normal(seed, images, regions, SIZE), mask, normal(seed + 1, WORDS, SIZE)


@given(SEED, st.integers(1, 4), st.integers(1, 5), st.integers(2, 6))
def test_the_best_region_is_one_of_them_and_scores_are_cosines(
    seed: int, units: int, images: int, regions: int
) -> None:
    words, seen = normalize(normal(seed, units, 6), dim=1), normalize(normal(seed + 1, images, regions, 6), dim=2)
    cosines = torch.einsum("qd,brd->qbr", words, seen)
    mask = normal(seed + 2, images, regions) > -0.5
    mask[:, 0] = True
    best = F.unit_maxima(cosines, mask)
    assert bool((best.abs() <= 1 + 1e-12).all())
    hidden = cosines.masked_fill(~mask, 5.0)
    torch.testing.assert_close(F.unit_maxima(hidden, mask), best)
    scores = F.t2i_scores(best, torch.arange(units), torch.tensor([0, units]))
    torch.testing.assert_close(scores[0], best.mean(0))


@given(SCENES, CAPTIONS, st.floats(0.0, 2.0), st.sampled_from(["matched", "t2i", "i2t", "sum"]))
def test_scores_are_those_of_a_loop(scene: Any, mentions: Any, weight: float, pooling: Any) -> None:
    regions, mask, words = _scene(*scene)
    captions = F.CaptionUnits.from_mentions(mentions)
    table = F.UnitTable.build(captions, words, weight)
    by_unit, by_region = naive_scores(regions, mask, captions, words, weight)
    expected = {
        "matched": (by_unit, by_region),
        "t2i": (by_unit, by_unit),
        "i2t": (by_region, by_region),
        "sum": (by_unit + by_region, by_unit + by_region),
    }[pooling]
    for found, reference in zip(F.match(regions, table, mask, pooling), expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-7, atol=1e-9)


@given(SCENES, CAPTIONS, st.floats(0.0, 2.0))
def test_the_table_holds_the_cosines_of_words_and_pairs(scene: Any, mentions: Any, weight: float) -> None:
    regions, mask, words = _scene(*scene)
    seen = normalize(regions.masked_fill(~mask.unsqueeze(2), 0), dim=2)
    captions = F.CaptionUnits.from_mentions(mentions)
    table = F.UnitTable.build(captions, words, weight)
    cosines = F.similarity_table(seen, table)
    for row, unit in zip(table.unit.tolist(), captions.unit.tolist(), strict=True):
        vector = normalize(unit_vector(words, int(captions.head[unit]), int(captions.modifier[unit]), weight), dim=0)
        torch.testing.assert_close(cosines[row], seen @ vector, rtol=1e-6, atol=1e-9)
    best = cosines.masked_fill(~mask, 0.0)
    for t, mentioned in enumerate(mentions):
        if mentioned:
            rows = table.unit[table.offsets[t] : table.offsets[t + 1]]
            expected = best[rows].amax(0).sum(1) / mask.sum(1)
            torch.testing.assert_close(F.i2t_scores(cosines, table, mask)[t], expected)


@given(SCENES, CAPTIONS, st.floats(0.001, 4.0))
def test_chunks_hold_what_fits_and_change_nothing(scene: Any, mentions: Any, memory_mib: float) -> None:
    regions, mask, words = _scene(*scene)
    table = F.UnitTable.build(F.CaptionUnits.from_mentions(mentions), words)
    size = F.chunk_size(table, regions.shape[1], regions.dtype, memory_mib)
    assert 1 <= size <= F.chunk_size(table, regions.shape[1], regions.dtype, 2 * memory_mib)
    assert size <= F.chunk_size(table, regions.shape[1], regions.dtype, memory_mib, with_i2t=False)
    chunks = list(F.score_chunks(regions, table, mask, memory_mib))
    assert [chunk.start for chunk in chunks] == list(range(0, len(regions), size))
    (whole,) = F.score_chunks(regions, table, mask, 1024.0)
    torch.testing.assert_close(torch.cat([chunk.maxima for chunk in chunks], dim=1), whole.maxima)
    torch.testing.assert_close(torch.cat([chunk.i2t for chunk in chunks if chunk.i2t is not None]), whole.i2t)


@given(SEED, st.integers(1, 5), st.integers(1, 6), st.floats(0.05, 2.0))
def test_the_cycle_rebuilds_each_side_from_the_other(seed: int, words: int, regions: int, temperature: float) -> None:
    one, two = normalize(normal(seed, words, SIZE), dim=1), normalize(normal(seed + 1, regions, SIZE), dim=1)
    for own, other, found in zip((one, two), (two, one), F.cycle_logits(one, two, temperature), strict=True):
        for i, vector in enumerate(own):
            rebuilt = (other @ vector / temperature).softmax(0) @ other
            torch.testing.assert_close(found[:, i], own @ rebuilt / temperature)


@given(SEED, st.integers(1, 6), st.integers(3, 12), st.integers(1, 12), st.sampled_from(["raw", "zscore", "softmax"]))
def test_reranking_sorts_the_first_candidates_and_only_these(
    seed: int, queries: int, items: int, first: int, fusion: Any
) -> None:
    base, known = normal(seed, queries, items), normal(seed + 1, queries, items)
    before = base.argsort(dim=1, descending=True)[:, :first]
    candidates, scores = rerank(base, known, first, 0.7, fusion)
    assert torch.equal(candidates.sort(dim=1).values, before.sort(dim=1).values)
    assert bool((scores.diff(dim=1) <= 1e-12).all())
    assert torch.equal(rerank(base, known, first, 0.0, fusion)[0], before)
