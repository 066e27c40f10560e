from typing import Any

import pytest
import torch
from torch import Tensor

from lit_methods.image_text.ranks import best_truth, count_rivals
from lit_methods.image_text.reranking import fuse, rerank, reranked_rivals, top_candidates

FUSIONS = ("raw", "softmax", "zscore")


def _scores(queries: int = 12, candidates: int = 30, seed: int = 0) -> Tensor:
    return torch.randn(queries, candidates, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _brute(scores: list[float], right: list[bool]) -> tuple[int, int]:
    truth = max(s for s, r in zip(scores, right, strict=True) if r)
    wrong = [s for s, r in zip(scores, right, strict=True) if not r]
    return sum(s > truth for s in wrong), sum(s == truth for s in wrong)


@pytest.mark.parametrize("folds", [False, True])
def test_rivals_equal_brute_force_and_add_up_over_shards(folds: bool) -> None:
    scores = _scores().mul(2).round()  # many ties
    query, candidate = torch.arange(12), torch.arange(30) % 12
    fold: dict[str, Any] = {"query_fold": query % 3, "candidate_fold": candidate % 3} if folds else {}
    truth = best_truth(scores, query, candidate)
    found = count_rivals(scores, truth, query, candidate, **fold)
    for q in range(12):
        keep = [c for c in range(30) if not folds or (c % 12) % 3 == q % 3]
        expected = _brute([float(scores[q, c]) for c in keep], [c % 12 == q for c in keep])
        assert (int(found.greater[q]), int(found.equal[q])) == expected
    shards = [slice(0, 7), slice(7, 30)]
    whole = torch.stack([best_truth(scores[:, s], query, candidate[s]) for s in shards]).amax(dim=0)
    assert torch.equal(whole, truth)
    counts = [
        count_rivals(
            scores[:, s],
            truth,
            query,
            candidate[s],
            **({"query_fold": query % 3, "candidate_fold": candidate[s] % 3} if folds else {}),
        )
        for s in shards
    ]
    assert torch.equal(counts[0].greater + counts[1].greater, found.greater)
    assert torch.equal(counts[0].equal + counts[1].equal, found.equal)


def test_top_candidates_are_the_sorted_ones() -> None:
    scores = _scores()
    expected = scores.sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(top_candidates(scores, 7), expected[:, :7])
    assert torch.equal(top_candidates(scores, 99), expected)
    assert torch.equal(top_candidates(torch.zeros(2, 5), 5), torch.arange(5).expand(2, 5))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_reranking_equals_a_loop(fusion: str) -> None:
    base, other = _scores(), _scores(seed=1)
    order, fused = rerank(base, other, 6, 0.4, fusion)
    for q in range(12):
        listed = sorted(range(30), key=lambda c: -float(base[q, c]))[:6]
        b, o = (torch.stack([x[q, c] for c in listed]) for x in (base, other))
        if fusion == "softmax":
            b, o = b.exp() / b.exp().sum(), o.exp() / o.exp().sum()
        elif fusion == "zscore":
            b, o = ((x - x.mean()) / x.std(correction=0) for x in (b, o))
        expected = dict(zip(listed, (b + 0.4 * o).tolist(), strict=True))
        assert order[q].tolist() == sorted(listed, key=lambda c: -expected[c])
        torch.testing.assert_close(fused[q], torch.tensor(sorted(expected.values(), reverse=True), dtype=base.dtype))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_changes_nothing(fusion: str) -> None:
    base, other = _scores().round(), _scores(seed=1)
    plain = top_candidates(base, 30)
    assert torch.equal(rerank(base, other, 8, 0.0, fusion)[0], plain[:, :8])
    assert torch.equal(rerank(base, other, 1, 0.5, fusion)[0], plain[:, :1])
    assert torch.equal(rerank(base, torch.full_like(base, 3.7), 8, 0.5, fusion)[0], plain[:, :8])
    assert not torch.equal(rerank(base, other, 8, 0.5, fusion)[0], plain[:, :8])


def test_a_function_scores_only_the_candidates() -> None:
    base, other, asked = _scores(), _scores(seed=1), []

    def score(candidates: Tensor) -> Tensor:
        asked.append(candidates.shape)
        return other.gather(1, candidates)

    assert torch.equal(rerank(base, score, 5)[0], rerank(base, other, 5)[0])
    assert asked == [(12, 5)]


def test_truth_below_the_list_keeps_its_rank() -> None:
    base, other, query, candidate = _scores(), _scores(seed=1), torch.arange(12), torch.arange(30) % 12
    before, after = reranked_rivals(base, other, query, candidate, 4, 0.9)
    below = before.greater >= 4
    assert below.any()
    assert torch.equal(after.greater[below], before.greater[below])
    assert bool((after.greater[~below] < 4).all())
    assert not torch.equal(after.greater[~below], before.greater[~below])
    order = rerank(base, other, 4, 0.9)[0]
    for q in (~below).nonzero().flatten().tolist():
        assert int(after.greater[q]) == [int(candidate[c]) == q for c in order[q]].index(True)
    same = reranked_rivals(base, other, query, candidate, 4, 0.0)
    assert torch.equal(same[0].greater, same[1].greater)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_degraded_base_improves(alpha: float, seed: int) -> None:
    truth = torch.eye(100, dtype=torch.float64) * 3
    base, other = truth + _scores(100, 100, seed) * 1.3, truth + _scores(100, 100, seed + 50)
    before, after = reranked_rivals(base, other, torch.arange(100), torch.arange(100), 15, alpha)
    assert (after.greater == 0).sum() >= (before.greater == 0).sum()
    assert after.greater.sum() < before.greater.sum()


def test_bad_input_is_named() -> None:
    base = _scores()
    with pytest.raises(ValueError, match="top_k=0"):
        rerank(base, base, 0)
    with pytest.raises(ValueError, match="scores hold NaN"):
        rerank(base.index_fill(0, torch.tensor(1), torch.nan), base)
    with pytest.raises(ValueError, match="fusion='max'"):
        rerank(base, base, fusion="max")
    with pytest.raises(ValueError, match=r"base is \(12, 3\) and other \(12, 4\)"):
        fuse(base[:, :3], base[:, :4], 0.1)
