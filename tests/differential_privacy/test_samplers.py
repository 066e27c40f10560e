"""The participation pattern that the sensitivity rests on, read off the batches themselves."""

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from lit_methods.differential_privacy.loaders import fixed_order_loader
from lit_methods.differential_privacy.samplers import FixedOrderBatchSampler


@pytest.mark.parametrize(("examples", "batch_size", "drop_last"), [(20, 4, False), (23, 4, False), (23, 4, True)])
def test_every_example_comes_once_per_epoch_and_always_len_apart(
    examples: int, batch_size: int, drop_last: bool
) -> None:
    sampler = FixedOrderBatchSampler(examples, batch_size, seed=3, drop_last=drop_last)
    steps: dict[int, list[int]] = {}
    step = 0
    for _ in range(3):
        for batch in sampler:
            for index in batch:
                steps.setdefault(index, []).append(step)
            step += 1
    assert step == 3 * len(sampler)
    assert len(steps) == (examples // batch_size * batch_size if drop_last else examples)
    for taken in steps.values():
        assert len(taken) == 3
        assert taken[1] - taken[0] == taken[2] - taken[1] == len(sampler)


def test_the_order_is_a_shuffle_that_depends_on_the_seed() -> None:
    orders = [[index for batch in FixedOrderBatchSampler(50, 8, seed=seed) for index in batch] for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("drop_last", [False, True])
def test_two_ranks_share_each_batch_of_one(drop_last: bool) -> None:
    whole = list(FixedOrderBatchSampler(27, 8, drop_last=drop_last))
    ranks = [FixedOrderBatchSampler(27, 4, drop_last=drop_last, rank=rank, world_size=2) for rank in (0, 1)]
    shared = list(zip(*ranks, strict=True))
    assert len(shared) == len(whole)
    for parts, batch in zip(shared, whole, strict=True):
        assert sorted(parts[0] + parts[1]) == sorted(batch)
        assert not set(parts[0]) & set(parts[1])


def test_a_resumed_pass_starts_in_the_middle_once() -> None:
    sampler = FixedOrderBatchSampler(20, 4)
    whole = list(sampler)
    sampler.start_at(3)
    assert list(sampler) == whole[3:]
    assert list(sampler) == whole
    assert len(sampler) == 5


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, 4), "num_examples must be at least 1, but is 0"),
        ((4, 0), "batch_size must be at least 1"),
        ((3, 4, 0, True), "drop_last=True leaves no batch"),
        ((9, 4, 0, False, 0, 2), "last batch has 1 examples for 2 processes.*drop_last"),
        ((8, 4, 0, False, 2, 2), r"rank must lie in \[0, 2\)"),
    ],
)
def test_bad_sizes(arguments: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FixedOrderBatchSampler(*arguments)


def test_a_loader_keeps_everything_but_its_order() -> None:
    def collate(rows: list[tuple[torch.Tensor]]) -> torch.Tensor:
        return torch.stack([row[0] for row in rows])

    data = TensorDataset(torch.arange(10))
    rebuilt = fixed_order_loader(DataLoader(data, batch_size=3, shuffle=True, drop_last=True, collate_fn=collate))
    assert len(rebuilt) == 3
    assert rebuilt.collate_fn is collate
    assert [batch.tolist() for batch in rebuilt] == list(FixedOrderBatchSampler(10, 3, drop_last=True))
    assert fixed_order_loader(rebuilt).batch_sampler is rebuilt.batch_sampler


def test_a_distributed_sampler_is_replaced() -> None:
    data = TensorDataset(torch.arange(8))
    sampler = DistributedSampler(data, num_replicas=2, rank=1)
    rebuilt = fixed_order_loader(DataLoader(data, batch_size=2, sampler=sampler), rank=1, world_size=2)
    assert [batch[0].tolist() for batch in rebuilt] == list(FixedOrderBatchSampler(8, 2, rank=1, world_size=2))


class Augmented(Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.rand(())


def test_augmentation_in_workers_follows_the_global_seed_and_does_not_move_it() -> None:
    drawn = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        loader = fixed_order_loader(DataLoader(Augmented(), batch_size=4, num_workers=1))
        before = torch.get_rng_state()
        drawn.append(next(iter(loader)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
