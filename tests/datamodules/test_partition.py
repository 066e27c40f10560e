"""Each example goes to one client, the rules hold, and seeds decide."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lit_methods.datamodules import (
    BernoulliDirichletPartition,
    ColumnPartition,
    DirichletPartition,
    FlowerPartition,
    IIDPartition,
    Partition,
    PathologicalPartition,
    ShardPartition,
)

LABELS = torch.arange(600) % 10
RULES: dict[str, Partition] = {
    "iid": IIDPartition(),
    "bernoulli-dirichlet": BernoulliDirichletPartition(0.3, 1.0),
    "dirichlet": DirichletPartition(0.5, min_samples=3),
    "pathological": PathologicalPartition(2),
    "shards": ShardPartition(2),
    "column": ColumnPartition([f"writer {i % 12}" for i in range(600)]),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_example_is_dealt_once_and_the_seed_decides(rule: str) -> None:
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    parts = RULES[rule].split(LABELS, 12, seed=4)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(600))
    assert all(len(part) >= RULES[rule].min_samples for part in parts)
    assert all(torch.equal(part, part.sort().values) for part in parts)
    again = RULES[rule].split(LABELS, 12, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    other = RULES[rule].split(LABELS, 12, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(parts, other, strict=True)) == (rule == "column")
    assert np.array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])


def _classes(parts: list[torch.Tensor]) -> list[set[int]]:
    return [set(LABELS[part].tolist()) for part in parts]


@pytest.mark.parametrize("p", [0.3, 0.7])
def test_clients_have_classes_with_probability_p(p: float) -> None:
    rule, rng = BernoulliDirichletPartition(p, 100.0), np.random.default_rng(0)
    rate = np.mean([rule.holders(30, 10, rng) for _ in range(200)])
    empty = (1 - p) ** 10
    assert rate == pytest.approx(p / (1 - empty), abs=0.01)
    for seed in range(20):
        holders = rule.holders(3, 10, np.random.default_rng(seed))
        assert holders.any(axis=0).all()
        assert holders.any(axis=1).all()


def test_a_client_has_examples_of_its_classes_only() -> None:
    rule = BernoulliDirichletPartition(0.3, 50.0)
    holders = rule.holders(12, 10, np.random.default_rng(4))
    for client, classes in enumerate(_classes(rule.split(LABELS, 12, seed=4))):
        assert classes == set(np.flatnonzero(holders[client]).tolist())


def test_alpha_decides_how_uneven_the_shares_are() -> None:
    def spread(alpha: float) -> float:
        parts = DirichletPartition(alpha).split(LABELS, 5, seed=0)
        return float(
            torch.stack([torch.bincount(LABELS[part], minlength=10) for part in parts]).float().std(dim=0).mean()
        )

    assert spread(0.3) > 2 * spread(5.0) > 2 * spread(1000.0)


def test_iid_parts_are_of_equal_size() -> None:
    assert {len(part) for part in IIDPartition().split(LABELS, 7, seed=0)} == {85, 86}


def test_pathological_clients_have_so_many_classes_and_every_class_a_holder() -> None:
    for clients in (5, 12):
        classes = _classes(PathologicalPartition(2).split(LABELS, clients, seed=1))
        assert all(len(found) == 2 for found in classes)
        assert set().union(*classes) == set(range(10))


def test_shards_hold_few_classes() -> None:
    classes = _classes(ShardPartition(2).split(LABELS, 10, seed=1))
    assert max(map(len, classes)) <= 4
    assert np.mean([len(found) for found in classes]) < 3.1


def test_columns_stay_together() -> None:
    for client, part in enumerate(RULES["column"].split(LABELS, 12, seed=0)):
        assert len(set((part % 12).tolist())) == 1, client


class _Partitioner:
    """The interface of flwr-datasets: a data set is set, then parts are loaded by number."""

    num_partitions = 3

    def __init__(self) -> None:
        self._dataset = None

    @property
    def dataset(self) -> object:
        return self._dataset

    @dataset.setter
    def dataset(self, value: object) -> None:
        assert self._dataset is None
        self._dataset = value

    def load_partition(self, number: int) -> object:
        return self._dataset.select(range(number, len(self._dataset), self.num_partitions))


def test_partitioners_of_flower_are_taken() -> None:
    parts = FlowerPartition(_Partitioner()).split(LABELS, 3, seed=0)
    assert [part[:2].tolist() for part in parts] == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(ValueError, match="num_clients=4, but the partitioner makes 3"):
        FlowerPartition(_Partitioner()).split(LABELS, 4, seed=0)


class _Forgetful(Partition):
    def deal(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        return np.array_split(np.arange(len(labels) - 1), num_clients)


@pytest.mark.parametrize(
    ("rule", "clients", "message"),
    [
        (IIDPartition(), 0, "num_clients=0 must be at least 1"),
        (IIDPartition(), 601, "needs 601 examples, but there are 600"),
        (IIDPartition(min_samples=100), 7, "needs 700 examples, but there are 600"),
        (DirichletPartition(0.01, min_samples=40), 12, r"leaves clients \[.*fewer than min_samples=40"),
        (_Forgetful(), 3, "deals 599 of 600 examples, 599 times in all"),
        (PathologicalPartition(11), 12, "classes_per_client=11 is more than the 10 classes"),
        (PathologicalPartition(2), 4, "leaves classes that nobody holds"),
        (ColumnPartition([0, 1]), 2, "values has 2 entries for 600 examples"),
        (ColumnPartition([0] * 600), 2, "the column has 1 different values"),
    ],
)
def test_impossible_splits_are_refused(rule: Partition, clients: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule.split(LABELS, clients, seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BernoulliDirichletPartition(0.0), r"p=0.0 must lie in \(0, 1\]"),
        (lambda: BernoulliDirichletPartition(0.5, 0.0), "alpha=0.0 must be above 0"),
        (lambda: DirichletPartition(-1.0), "alpha=-1.0 must be above 0"),
        (lambda: PathologicalPartition(0), "classes_per_client=0 must be above 0"),
        (lambda: ShardPartition(0), "shards_per_client=0 must be above 0"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Partition], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_probability_that_gives_nobody_a_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"p=1e-09 leaves clients without a class in each of 1000"):
        BernoulliDirichletPartition(p=1e-9).split(torch.arange(40) % 4, 4, 0)
