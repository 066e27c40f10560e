"""Cyclic Poisson sampling: groups, coin tosses, shares and resumption, read off the batches themselves."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_methods.differential_privacy.checkpoint import strip_private_state
from lit_methods.differential_privacy.factorization import Participation
from lit_methods.differential_privacy.ledger import ParticipationLedger
from lit_methods.differential_privacy.loaders import collate_with_empty, cyclic_poisson_loader, fixed_order_loader
from lit_methods.differential_privacy.poisson import CyclicPoissonBatchSampler
from lit_methods.differential_privacy.samplers import FixedOrderBatchSampler


def run(sampler: CyclicPoissonBatchSampler, passes: int) -> list[list[int]]:
    return [batch for _ in range(passes) for batch in sampler]


def test_groups_partition_the_examples_and_take_turns() -> None:
    sampler = CyclicPoissonBatchSampler(300, 20, 7, unsafe_seed=1)
    groups: list[set[int]] = [set() for _ in range(7)]
    for step, batch in enumerate(run(sampler, 40)):
        assert len(batch) == len(set(batch))
        groups[step % 7] |= set(batch)
    assert sum(len(group) for group in groups) == 300
    assert set().union(*groups) == set(range(300))


def test_group_sizes_are_those_of_independent_uniform_draws() -> None:
    sizes = [
        len(group) for seed in range(200) for group in CyclicPoissonBatchSampler(60, 4, 6, unsafe_seed=seed)._groups
    ]
    assert np.mean(sizes) == pytest.approx(10.0)
    assert np.var(sizes) == pytest.approx(60 * (1 / 6) * (5 / 6), rel=0.15)


@pytest.mark.parametrize(("wrong", "accepted"), [(1.0, True), (1.06, False), (0.94, False)])
def test_joins_are_independent_coins_of_the_stated_probability(wrong: float, accepted: bool) -> None:
    sampler = CyclicPoissonBatchSampler(200, 20, 4, unsafe_seed=3)
    assert sampler.sampling_probability == 0.4
    cycles = 200
    batches = run(sampler, 80)
    assert len(batches) == 4 * cycles
    counts = Counter(index for batch in batches for index in batch)
    joins = np.array([counts[index] for index in range(200)])
    probability = 0.4 * wrong
    assert bool(stats.binomtest(int(joins.sum()), 200 * cycles, probability).pvalue > 1e-3) is accepted
    if accepted:
        spread = ((joins - cycles * probability) ** 2).sum() / (cycles * probability * (1 - probability))
        assert 1e-3 < stats.chi2.cdf(spread, 200) < 1 - 1e-3


def test_pairs_of_a_group_join_independently() -> None:
    sampler = CyclicPoissonBatchSampler(2, 1, 1, unsafe_seed=5)
    batches = run(sampler, 2000)
    table = Counter((0 in batch, 1 in batch) for batch in batches)
    observed = [[table[a, b] for b in (False, True)] for a in (False, True)]
    assert stats.chi2_contingency(observed).pvalue > 1e-3
    assert stats.binomtest(table[False, False], len(batches), 0.25).pvalue > 1e-3


def test_a_pass_has_the_data_sets_size_in_expectation() -> None:
    sampler = CyclicPoissonBatchSampler(103, 10, 3, unsafe_seed=0)
    assert len(sampler) == 11
    assert len(list(sampler)) == 11
    sizes = [len(batch) for batch in run(sampler, 200)]
    assert np.mean(sizes) == pytest.approx(10.0, rel=0.03)


def test_seeds_come_from_the_operating_system_and_leave_global_randomness_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    first, second = (run(CyclicPoissonBatchSampler(64, 8, 2), 4) for _ in range(2))
    assert first != second
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


def test_seeds_that_share_their_low_bits_differ() -> None:
    low, high = (CyclicPoissonBatchSampler(64, 8, 2, unsafe_seed=seed) for seed in (7, 7 + 2**32))
    assert list(low) != list(high)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_ranks_and_accumulated_batches_share_each_draw(accumulation: int) -> None:
    whole = CyclicPoissonBatchSampler(240, 4 * accumulation * 2, 5, unsafe_seed=2)
    ranks = [
        CyclicPoissonBatchSampler(240, 4, 5, accumulation=accumulation, unsafe_seed=2, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    assert len(ranks[0]) == len(whole) * accumulation
    parts = [run(rank, 3) for rank in ranks]
    for step, drawn in enumerate(run(whole, 3)):
        dealt = [part[step * accumulation + i] for part in parts for i in range(accumulation)]
        assert sorted(itertools.chain(*dealt)) == drawn
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.mark.parametrize("batch", [0, 4, 10, 17])
def test_a_resumed_run_sees_the_batches_that_it_would_have_seen(batch: int) -> None:
    sampler = CyclicPoissonBatchSampler(100, 10, 3)
    whole = run(sampler, 3)
    buffer = io.BytesIO()
    torch.save(sampler.state_dict(), buffer)
    buffer.seek(0)
    resumed = CyclicPoissonBatchSampler(100, 10, 3)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    resumed.start_at(batch)
    assert run(resumed, 3 - batch // 10) == whole[batch:]


def test_a_restored_order_without_its_place_is_refused() -> None:
    for sampler in (CyclicPoissonBatchSampler(20, 4, 2, unsafe_seed=0), FixedOrderBatchSampler(20, 4)):
        sampler.load_state_dict(sampler.state_dict())
        with pytest.raises(RuntimeError, match="start_at"):
            next(iter(sampler))
        sampler.start_at(3)
        assert len(list(sampler)) == 2


def test_another_runs_order_is_refused() -> None:
    state = CyclicPoissonBatchSampler(20, 4, 2, unsafe_seed=0).state_dict()
    with pytest.raises(ValueError, match=r"cycle_length \(saved 2, now 5\).*train anew"):
        CyclicPoissonBatchSampler(20, 4, 5, unsafe_seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match=r"kind \(saved 'cyclic Poisson', now 'fixed order'\)"):
        FixedOrderBatchSampler(20, 4).load_state_dict(state)
    with pytest.raises(ValueError, match=r"seed \(saved 1, now 0\)"):
        FixedOrderBatchSampler(20, 4, seed=0).load_state_dict(FixedOrderBatchSampler(20, 4, seed=1).state_dict())


def test_a_pass_left_early_is_not_silently_followed_by_another() -> None:
    sampler = CyclicPoissonBatchSampler(20, 4, 2, unsafe_seed=0)
    left = iter(sampler)
    next(left)
    with pytest.raises(RuntimeError, match=r"left before its end.*start_at"):
        next(iter(sampler))
    sampler.start_at(1)
    assert len(list(sampler)) == 4


def test_participation_follows_the_cycle_and_refuses_other_steps() -> None:
    sampler = CyclicPoissonBatchSampler(100, 10, 3, accumulation=2)
    assert len(sampler) == 10
    assert sampler.participation(20, 2) == Participation(20, 7, 3)
    assert sampler.participation(1, 2, batches_per_epoch=2) == Participation(1, 1, 3)
    with pytest.raises(ValueError, match=r"accumulation=1 .*made with accumulation=2"):
        sampler.participation(20)
    with pytest.raises(ValueError, match=r"Passes of 6 of 10 batches.*limit_train_batches"):
        sampler.participation(20, 2, batches_per_epoch=6)


def test_participation_of_a_fixed_order() -> None:
    sampler = FixedOrderBatchSampler(100, 10)
    assert sampler.participation(30) == Participation(30, 3, 10)
    assert sampler.participation(11, accumulation=3) == Participation(11, 3, 4)
    assert sampler.participation(14, batches_per_epoch=7) == Participation(14, 2, 7)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_examples": 0}, "num_examples must be at least 1, but is 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
        ({"cycle_length": 0}, "cycle_length must be at least 1, but is 0"),
        ({"accumulation": 0}, "accumulation must be at least 1, but is 0"),
        ({"cycle_length": 11}, r"probability would be 1.1. Lower cycle_length \(11\) or batch_size \(10\)"),
        ({"unsafe_seed": -1}, "unsafe_seed must be at least 0, but is -1"),
        ({"unsafe_seed": 1, "shared_seed": 1}, "Both shared_seed and unsafe_seed"),
        ({"world_size": 2}, "world_size=2 .*shared_seed is None. Broadcast"),
        ({"world_size": 2, "rank": 2}, r"rank must lie in \[0, 2\), but is 2"),
    ],
)
def test_bad_arguments(arguments: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        CyclicPoissonBatchSampler(**{"num_examples": 100, "batch_size": 10, "cycle_length": 2} | arguments)


def test_passes_follow_the_training_wherever_it_stands() -> None:
    sampler, whole = (CyclicPoissonBatchSampler(40, 4, 3, accumulation=2, unsafe_seed=0) for _ in range(2))
    batches = run(whole, 2)
    steps = 0
    sampler.follow(lambda: sampler.position_after(steps, 2))
    drawn = iter(sampler)
    first = [next(drawn) for _ in range(6)]
    steps = 3
    assert first + list(sampler) == batches[:10]
    steps = 5
    assert list(sampler) == batches[10:]
    assert [sampler.share(batch) for batch in range(20)] == batches


def test_the_place_after_some_steps_of_a_fixed_order() -> None:
    sampler = FixedOrderBatchSampler(50, 5)
    whole = list(sampler)
    assert [sampler.position_after(steps, 3) for steps in range(6)] == [0, 3, 6, 9, 0, 3]
    assert sampler.position_after(9, batches_per_epoch=7) == 2
    sampler.follow(lambda: 4)
    assert list(sampler) == list(sampler) == whole[4:]


def test_the_secret_of_the_draws_does_not_reach_a_published_checkpoint() -> None:
    sampler = CyclicPoissonBatchSampler(20, 4, 2)
    assert strip_private_state({"weights": 1, "callbacks": {"order": sampler.state_dict()}}) == {
        "weights": 1,
        "callbacks": {},
    }


def test_coins_are_tossed_for_one_run() -> None:
    sampler = CyclicPoissonBatchSampler(40, 4, 3)
    passes = [list(sampler) for _ in range(2)]
    sampler.follow(lambda: 0)
    with pytest.raises(RuntimeError, match="tossed for an earlier run"):
        next(iter(sampler))
    sampler.load_state_dict(sampler.state_dict())
    assert list(sampler) == passes[0]


def test_a_negative_place_is_refused() -> None:
    with pytest.raises(ValueError, match="batch must be at least 0, but is -1"):
        CyclicPoissonBatchSampler(20, 4, 2).start_at(-1)


def collate_nested(rows: list[Any]) -> dict[str, Any]:
    images, labels = zip(*rows, strict=True)
    return {"image": torch.stack(images), "more": (torch.stack(labels), [torch.ones(len(rows), 2, dtype=torch.int8)])}


def test_empty_batches_have_the_structure_of_full_ones() -> None:
    data = TensorDataset(torch.rand(40, 3, 2), torch.arange(40))
    loader = cyclic_poisson_loader(
        DataLoader(data, batch_size=1, shuffle=True, collate_fn=collate_nested), 2, unsafe_seed=0
    )
    batches = list(loader)
    sizes = [len(batch["image"]) for batch in batches]
    assert sizes == [len(batch) for batch in CyclicPoissonBatchSampler(40, 1, 2, unsafe_seed=0)]
    empty = batches[sizes.index(0)]
    assert empty["image"].shape == (0, 3, 2)
    assert empty["more"][0].dtype == torch.int64
    assert empty["more"][1][0].shape == (0, 2)
    assert empty["more"][1][0].dtype == torch.int8
    assert max(sizes) > 1


def test_the_very_first_batch_may_be_empty() -> None:
    collate = collate_with_empty(torch.utils.data.default_collate, (torch.rand(3), 1))
    images, labels = collate([])
    assert (images.shape, labels.shape, labels.dtype) == ((0, 3), (0,), torch.int64)


@pytest.mark.parametrize("example", [("text", torch.rand(2)), {"name": "a"}], ids=["tuple", "dict"])
def test_batches_that_can_not_be_emptied_are_refused_at_once(example: Any) -> None:
    with pytest.raises(ValueError, match=r"can draw an empty batch.*collate_fn"):
        collate_with_empty(torch.utils.data.default_collate, example)


def mean(rows: list[Tensor]) -> Tensor:
    return torch.stack(rows).mean()


def test_a_collation_that_mixes_examples_is_refused() -> None:
    with pytest.raises(ValueError, match=r"can draw an empty batch.*collate_fn"):
        collate_with_empty(mean, torch.rand(2))


def test_workers_draw_ahead_and_a_resumed_loader_still_goes_on_in_place() -> None:
    data = TensorDataset(torch.arange(60))
    plain = DataLoader(data, batch_size=6, num_workers=1)
    loader = cyclic_poisson_loader(plain, 3, unsafe_seed=4)
    whole = [batch[0].tolist() for _ in range(2) for batch in loader]
    assert len(whole) == 20
    resumed = cyclic_poisson_loader(plain, 3, unsafe_seed=4)
    assert isinstance(resumed.batch_sampler, CyclicPoissonBatchSampler)
    resumed.batch_sampler.start_at(13)
    assert [batch[0].tolist() for batch in resumed] == whole[13:]


def test_loaders_are_rebuilt_once_and_refused_alike() -> None:
    data = TensorDataset(torch.arange(12))
    loader = cyclic_poisson_loader(DataLoader(data, batch_size=3), 2)
    assert cyclic_poisson_loader(loader, 2).batch_sampler is loader.batch_sampler
    with pytest.raises(ValueError, match=r"CyclicPoissonBatchSampler is for rank 0 of 1 .* rank 1 of 2"):
        cyclic_poisson_loader(loader, 2, rank=1, world_size=2)
    with pytest.raises(ValueError, match="has cycle_length=2, but 3 is asked for"):
        cyclic_poisson_loader(loader, 3)
    with pytest.raises(ValueError, match=r"CyclicPoissonBatchSampler .*batch_sampler=FixedOrderBatchSampler"):
        fixed_order_loader(loader)
    with pytest.raises(ValueError, match=r"FixedOrderBatchSampler .*batch_sampler=CyclicPoissonBatchSampler"):
        cyclic_poisson_loader(fixed_order_loader(DataLoader(data, batch_size=3)), 2)

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    with pytest.raises(ValueError, match="map-style"):
        cyclic_poisson_loader(DataLoader(Stream(), batch_size=3), 2)


@pytest.mark.parametrize(
    "sampler",
    [
        FixedOrderBatchSampler(23, 4),
        CyclicPoissonBatchSampler(24, 2, 4, unsafe_seed=0),
        CyclicPoissonBatchSampler(24, 2, 4, accumulation=2, unsafe_seed=0),
    ],
    ids=["fixed", "cyclic", "accumulated"],
)
def test_the_ledger_finds_our_samplers_in_order(sampler: Any) -> None:
    accumulation = getattr(sampler, "accumulation", 1)
    per_pass = len(sampler) // accumulation
    ledger = sampler.ledger = ParticipationLedger(sampler.participation(4 * per_pass, accumulation), accumulation)
    drawn = Counter(index for _ in range(4) for batch in sampler for index in batch)
    assert ledger.counts == drawn
    list(sampler)
    assert ledger.counts == drawn


def test_the_ledger_sees_an_accumulation_that_ends_with_the_pass() -> None:
    sampler = FixedOrderBatchSampler(20, 4)
    sampler.ledger = ParticipationLedger(sampler.participation(6, accumulation=2), accumulation=2)
    for _ in range(2):
        list(sampler)
    assert sampler.ledger.step == 5
    assert set(sampler.ledger.counts.values()) == {2}


def test_the_ledger_names_who_came_too_early() -> None:
    sampler = CyclicPoissonBatchSampler(8, 4, 2, unsafe_seed=0)
    sampler.ledger = ParticipationLedger(Participation(100, 100, 3))
    with pytest.raises(RuntimeError, match=r"Example \d took part in step (\d+) and again in step \d+: a gap of 2,.*3"):
        run(sampler, 20)


def test_the_ledger_on_its_own() -> None:
    ledger = ParticipationLedger(Participation(10, 2, 3))
    ledger.record(0, [1, 2])
    ledger.record(3, [1])
    with pytest.raises(RuntimeError, match=r"Example 1 .*step 3 and again in step 5: a gap of 2, .*at least 3"):
        ledger.record(5, [2, 1])
    with pytest.raises(RuntimeError, match=r"Example 1 takes part in step 7 for the 3th time.*at most 2"):
        ledger.record(7, [1])
    with pytest.raises(RuntimeError, match=r"Example 4 took part in step 8 and again in step 8: a gap of 0"):
        ledger.record(8, [4, 4])
    with pytest.raises(RuntimeError, match="Step 10 is past the 10 steps"):
        ledger.record(10, [])
    assert ledger.counts[1] == 2
    with pytest.raises(ValueError, match="accumulation must be at least 1, but is 0"):
        ParticipationLedger(Participation(10, 2, 3), 0)
