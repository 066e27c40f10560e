import pytest
import torch
from torch import Tensor

from lit_methods.image_text.functional import (
    CaptionUnits,
    UnitTable,
    chunk_size,
    cycle_logits,
    match,
    score_chunks,
    similarity_table,
    t2i_scores,
)
from tests.image_text.references import naive_scores, scene

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def _ranks(scores: Tensor) -> Tensor:
    return scores.flatten().argsort().argsort().double()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_scores_equal_the_triple_loop(dtype: torch.dtype, masked: bool, weight: float) -> None:
    regions, mask, captions, words = scene(dtype)
    mask = mask if masked else None
    t2i, i2t = match(regions, UnitTable.build(captions, words, weight), mask)
    expected = naive_scores(regions.double(), mask, captions, words.double(), weight)
    torch.testing.assert_close(t2i.double(), expected[0], rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(i2t.double(), expected[1], rtol=0, atol=TOLERANCE[dtype])
    assert not torch.equal(t2i, i2t)


def test_bfloat16_keeps_the_order_of_scores() -> None:
    generator = torch.Generator().manual_seed(1)
    words = torch.randn(40, 64, generator=generator)
    regions = torch.randn(60, 6, 64, generator=generator) + 1.5 * words[torch.randint(40, (60, 6), generator=generator)]
    captions = CaptionUnits.from_mentions([[(i, -1), ((i * 7 + 3) % 40, (i + 1) % 40)] for i in range(40)])
    table = UnitTable.build(captions, words)
    for exact, coarse in zip(match(regions, table), match(regions.bfloat16(), table.to(torch.bfloat16)), strict=True):
        ranks = torch.stack([_ranks(exact), _ranks(coarse.float())])
        assert torch.corrcoef(ranks)[0, 1] > 0.999


@pytest.mark.parametrize("memory_mib", [3.0001, 3.002, 3.004, 512.0])
def test_scores_do_not_depend_on_the_chunks(memory_mib: float) -> None:
    regions, mask, captions, words = scene()
    table = UnitTable.build(captions, words)
    expected = match(regions, table, mask)
    found = match(regions, table, mask, memory_mib=memory_mib)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    chunks = list(score_chunks(regions, table, mask, memory_mib))
    assert len(chunks) == -(-9 // min(9, chunk_size(table, 5, torch.float64, memory_mib)))
    assert [chunk.start for chunk in chunks] == list(range(0, 9, chunk_size(table, 5, torch.float64, memory_mib)))


def test_small_budget_means_many_chunks() -> None:
    regions, mask, captions, words = scene()
    table = UnitTable.build(captions, words)
    assert len(list(score_chunks(regions, table, mask, 3.0001))) == 9
    assert len(list(score_chunks(regions, table, mask, 512.0))) == 1


def test_poolings() -> None:
    regions, mask, captions, words = scene()
    table = UnitTable.build(captions, words)
    t2i, i2t = match(regions, table, mask)
    for pooling, expected in (("t2i", t2i), ("i2t", i2t), ("sum", t2i + i2t)):
        for found in match(regions, table, mask, pooling):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def _permuted_captions(captions: CaptionUnits) -> CaptionUnits:
    unit = torch.cat([captions.unit[a:b].flip(0) for a, b in captions.offsets.unfold(0, 2, 1).tolist()])
    return CaptionUnits(captions.head, captions.modifier, unit, captions.offsets)


def test_what_pads_an_image_is_never_read() -> None:
    regions, mask, captions, words = scene()
    table = UnitTable.build(captions, words)
    padded = regions.masked_fill(~mask.unsqueeze(2), torch.nan)
    torch.testing.assert_close(match(padded, table, mask), match(regions, table, mask), rtol=0, atol=0)


def test_scores_ignore_order_and_scale() -> None:
    regions, _, captions, words = scene()
    expected = match(regions, UnitTable.build(captions, words))
    order = torch.randperm(5)
    for found in (
        match(regions[:, order], UnitTable.build(captions, words)),
        match(regions, UnitTable.build(_permuted_captions(captions), words)),
        match(regions * 7, UnitTable.build(captions, words)),
        match(regions, UnitTable.build(captions, words * 7)),
        match(torch.cat([regions, regions], dim=1), UnitTable.build(captions, words)),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_one_region_twice_changes_only_the_mean_over_regions() -> None:
    regions, _, captions, words = scene()
    table = UnitTable.build(captions, words)
    t2i, i2t = match(regions, table)
    again, other = match(torch.cat([regions, regions[:, :1]], dim=1), table)
    torch.testing.assert_close(again, t2i, rtol=0, atol=1e-12)
    assert (other - i2t).abs().max() > 1e-3


def test_norm_of_one_prototype_moves_its_composites_only() -> None:
    regions, _, _, words = scene()
    captions = CaptionUnits.from_mentions([[(2, -1)], [(2, 5)]])
    before, _ = match(regions, UnitTable.build(captions, words))
    words[2] *= 10
    after, _ = match(regions, UnitTable.build(captions, words))
    torch.testing.assert_close(after[:, 0], before[:, 0], rtol=0, atol=1e-12)
    assert (after[:, 1] - before[:, 1]).abs().max() > 1e-3


def test_repeated_mention_weighs_twice_in_the_mean_over_units() -> None:
    regions, _, _, words = scene()
    captions = CaptionUnits.from_mentions([[(1, -1), (4, -1)], [(1, -1), (1, -1), (4, -1)], [(1, -1)]])
    t2i, i2t = match(regions, UnitTable.build(captions, words))
    torch.testing.assert_close(t2i[:, 1] * 3, t2i[:, 0] * 2 + t2i[:, 2], rtol=0, atol=1e-12)
    torch.testing.assert_close(i2t[:, 1], i2t[:, 0], rtol=0, atol=1e-12)


def test_table_rows_are_cosines_of_unit_vectors() -> None:
    regions, _, captions, words = scene()
    table = UnitTable.build(captions, words, 0.7)
    regions = torch.nn.functional.normalize(regions, dim=2)
    found = similarity_table(regions, table)[table.unit]
    units = torch.nn.functional.normalize(captions.vectors(words, 0.7), dim=1)[captions.unit]
    torch.testing.assert_close(found, torch.einsum("qd,brd->qbr", units, regions), rtol=0, atol=1e-12)
    assert table.num_rows == len(table.directions) + int((captions.modifier >= 0).sum())


def test_captions_without_units_score_a_constant() -> None:
    regions, mask, _, words = scene()
    table = UnitTable.build(CaptionUnits.from_mentions([[], []]), words)
    for scores in match(regions, table, mask):
        assert torch.equal(scores, torch.zeros(9, 2, dtype=torch.float64))
    assert torch.equal(
        t2i_scores(torch.ones(3, 2), torch.tensor([1]), torch.tensor([0, 0, 1])), torch.tensor([[0.0, 0], [1, 1]])
    )


def test_cycle_logits_equal_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    regions = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    for mine, other, found in (
        (words, regions, cycle_logits(words, regions, 0.3)[0]),
        (regions, words, cycle_logits(words, regions, 0.3)[1]),
    ):
        for i in range(len(mine)):
            for j in range(len(mine)):
                weights = [float((mine[j] @ x / 0.3).exp()) for x in other]
                rebuilt = sum(w * x for w, x in zip(weights, other, strict=True)) / sum(weights)
                torch.testing.assert_close(found[i, j], mine[i] @ rebuilt / 0.3, rtol=1e-10, atol=1e-10)


def test_cycle_loss_passes_gradcheck() -> None:
    words = torch.randn(3, 2, dtype=torch.float64)
    regions = torch.randn(4, 2, dtype=torch.float64)

    def loss(matrix: Tensor) -> Tensor:
        logits = cycle_logits(words @ matrix, regions @ matrix, 0.5)
        return sum(torch.nn.functional.cross_entropy(x, torch.arange(len(x))) for x in logits)

    assert torch.autograd.gradcheck(loss, torch.eye(2, dtype=torch.float64).requires_grad_())


def test_bad_input_is_named() -> None:
    regions, mask, captions, words = scene()
    table = UnitTable.build(captions, words)
    with pytest.raises(ValueError, match=r"regions is \(9, 5, 6\); pass \(I, R, 7\)"):
        match(regions[..., 1:], table)
    with pytest.raises(ValueError, match="at least one region"):
        match(regions[:, :0], table)
    with pytest.raises(ValueError, match="regions of image 4 hold NaN"):
        match(regions.index_fill(0, torch.tensor(4), torch.nan), table)
    with pytest.raises(ValueError, match="image 3 has no region"):
        match(regions, table, mask.index_fill(0, torch.tensor(3), False))
    with pytest.raises(ValueError, match=r"mask is \(9, 4\)"):
        match(regions, table, mask[:, 1:])
    with pytest.raises(ValueError, match="pooling='both'"):
        match(regions, table, pooling="both")
    with pytest.raises(ValueError, match="no image"):
        match(regions[:0], table)
    with pytest.raises(ValueError, match="word 11 of 5 words"):
        UnitTable.build(captions, words[:5])
