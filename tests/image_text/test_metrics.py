import pytest
import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalHitRate

from lit_methods.image_text.metrics import RetrievalRanks, recall_sum
from lit_methods.image_text.ranks import Rivals, best_truth, count_rivals
from tests.gloo import GlooPool


def _problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of 20 images against captions, of which each image has one to four; `(scores, image, caption's image)`."""
    generator = torch.Generator().manual_seed(seed)
    captions = torch.arange(20).repeat_interleave(torch.randint(1, 5, (20,), generator=generator))
    return torch.randn(20, len(captions), generator=generator), torch.arange(20), captions


def _rivals(scores: Tensor, query: Tensor, candidate: Tensor) -> Rivals:
    return count_rivals(scores, best_truth(scores, query, candidate), query, candidate)


@pytest.mark.parametrize("to_text", [True, False])
def test_recall_is_the_hit_rate_of_torchmetrics(to_text: bool) -> None:
    scores, image, caption = _problem()
    scores, query, candidate = (scores, image, caption) if to_text else (scores.T, caption, image)
    metric = RetrievalRanks()
    metric.update(_rivals(scores, query, candidate), torch.arange(len(query)))
    found = metric.compute()
    index = torch.arange(len(query)).unsqueeze(1).expand_as(scores)
    right = query.unsqueeze(1) == candidate
    for k in (1, 5, 10):
        reference = RetrievalHitRate(top_k=k)(scores.flatten(), right.flatten(), index.flatten())
        torch.testing.assert_close(found[f"R@{k}"], 100 * reference)
    ranks = torch.tensor(
        [1 + int((scores[q] > scores[q][right[q]].max()).sum()) for q in range(len(query))], dtype=torch.float
    )
    assert found["medR"] == ranks.quantile(0.5)
    assert found["meanR"] == ranks.mean()


@pytest.mark.parametrize(("ties", "rank"), [("mean", 3.0), ("pessimistic", 4.0), ("optimistic", 2.0)])
def test_ties(ties: str, rank: float) -> None:
    metric = RetrievalRanks(ks=(2, 3, 4), ties=ties)
    metric.update(Rivals(torch.tensor([1]), torch.tensor([2])), torch.tensor([0]))
    found = metric.compute()
    assert found["meanR"] == rank
    assert {k: float(found[f"R@{k}"]) for k in (2, 3, 4)} == {k: 100.0 * (rank <= k) for k in (2, 3, 4)}


def test_folds_are_averaged() -> None:
    greater, fold = torch.tensor([0, 0, 6, 3, 12]), torch.tensor([0, 0, 0, 1, 1])
    metric = RetrievalRanks()
    metric.update(Rivals(greater, torch.zeros_like(greater)), torch.arange(5), fold)
    found = metric.compute()
    torch.testing.assert_close(found["R@1"], torch.tensor(100 * (2 / 3 + 0) / 2))
    torch.testing.assert_close(found["R@10"], torch.tensor(100 * (1 + 1 / 2) / 2))
    torch.testing.assert_close(found["meanR"], torch.tensor((3.0 + 8.5) / 2))
    torch.testing.assert_close(found["medR"], torch.tensor((1.0 + 8.5) / 2))


def test_repeated_query_counts_once() -> None:
    scores, image, caption = _problem()
    rivals = _rivals(scores, image, caption)
    once, twice = RetrievalRanks(), RetrievalRanks()
    once.update(rivals, image)
    twice.update(Rivals(rivals.greater[:13], rivals.equal[:13]), image[:13])
    twice.update(Rivals(rivals.greater[7:], rivals.equal[7:]), image[7:])
    assert once.compute() == twice.compute()


def test_recall_sum_adds_the_recalls() -> None:
    metric = RetrievalRanks()
    metric.update(Rivals(torch.tensor([0, 7]), torch.tensor([0, 0])), torch.arange(2))
    assert recall_sum(metric.compute(), metric.compute()) == 2 * (50 + 50 + 100)


def _sharded(rank: int, world_size: int) -> dict[str, Tensor]:
    scores, image, caption = _problem()
    rivals = _rivals(scores, image, caption)
    mine = torch.arange(rank, 21, world_size) % 20  # as a sampler that repeats the first to make shares equal
    metric = RetrievalRanks()
    metric.update(Rivals(rivals.greater[mine], rivals.equal[mine]), image[mine])
    return metric.compute()


@pytest.mark.ddp
def test_two_processes_equal_one(gloo: GlooPool) -> None:
    scores, image, caption = _problem()
    metric = RetrievalRanks()
    metric.update(_rivals(scores, image, caption), image)
    assert gloo.run(_sharded) == [metric.compute()] * 2


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"ks=\(\)"):
        RetrievalRanks(ks=())
    with pytest.raises(ValueError, match=r"ks=\(0,\)"):
        RetrievalRanks(ks=(0,))
    with pytest.raises(ValueError, match="ties='random'"):
        RetrievalRanks(ties="random")
    with pytest.warns(UserWarning, match="compute"), pytest.raises(ValueError, match="No query was ranked"):
        RetrievalRanks().compute()
