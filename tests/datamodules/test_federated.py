"""Clients, rounds and local test sets of the federated datamodule."""

import copy
import pickle
from typing import Any

import pytest
import torch

from lit_methods.datamodules import DigitsDataModule, DirichletPartition, FederatedDataModule, IIDPartition
from lit_methods.datamodules.federated import local_test_sets


def _data(**options: Any) -> FederatedDataModule:
    data = FederatedDataModule(DigitsDataModule(), **({"num_clients": 6} | options))
    data.setup("fit")
    return data


def test_clients_hold_the_training_set() -> None:
    data = _data(partition=DirichletPartition(0.5))
    whole = data.source.train_set
    held = torch.cat([client.positions for client in data.federation.clients])
    assert torch.equal(held.sort().values, torch.arange(len(whole)))
    for client in data.federation.clients:
        images, labels = client.__getitems__(range(len(client)))
        assert torch.equal(labels, client.labels)
        assert torch.equal(labels, whole.labels[client.positions])
        assert torch.equal(images, whole.__getitems__(client.positions.tolist())[0])
        assert not client.random


def test_an_epoch_is_its_rounds() -> None:
    data = _data(rounds_per_epoch=3)
    loader = data.train_dataloader()
    assert len(loader) == 3
    assert [batch is data.federation for batch in loader] == [True] * 3


@pytest.mark.parametrize("validate_on", ["test", "held_out"])
def test_evaluation_covers_the_whole_set_once(validate_on: str) -> None:
    data = _data(validate_on=validate_on, eval_batch_size=100)
    dataset = data.source.test_set if validate_on == "test" else data.source.val_set
    loader = data.val_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), dataset.labels)
    members = torch.cat([batch.members for batch in batches])
    counts = data.federation.class_counts(10)
    for client in range(6):
        drawn = torch.bincount(dataset.labels[members[:, client]], minlength=10)
        expected = [int(n * len(dataset) / int(counts.sum())) for n in counts[client].tolist()]
        available = torch.bincount(dataset.labels, minlength=10).tolist()
        assert drawn.tolist() == [min(a, b) for a, b in zip(expected, available, strict=True)]
    assert all(batch.federation is data.federation for batch in batches)


def test_local_test_sets_are_each_clients_own_draw() -> None:
    counts, labels = torch.tensor([[10, 10], [10, 10]]), torch.arange(80) % 2
    members = local_test_sets(counts, labels, seed=0)
    assert members.sum(dim=0).tolist() == [40, 40]
    assert not torch.equal(members[:, 0], members[:, 1])
    assert torch.equal(members, local_test_sets(counts, labels, seed=0))
    assert not torch.equal(members, local_test_sets(counts, labels, seed=1))


def test_a_smaller_training_set_is_drawn_before_the_split() -> None:
    data = _data(train_size=100)
    assert sum(len(client) for client in data.federation.clients) == 100
    held = torch.cat([client.positions for client in data.federation.clients])
    assert len(held.unique()) == 100
    assert int(held.max()) > 200


def test_fingerprints_tell_partitions_apart() -> None:
    same = {_data().federation.fingerprint, _data().federation.fingerprint}
    assert len(same) == 1
    others = [{"partition_seed": 1}, {"num_clients": 5}, {"partition": IIDPartition()}, {"train_size": 500}]
    assert len(same | {_data(**options).federation.fingerprint for options in others}) == 5


def test_transformed_examples_are_random() -> None:
    data = FederatedDataModule(DigitsDataModule(train_transform=lambda image: image + 1), 3)
    data.setup("fit")
    assert all(client.random for client in data.federation.clients)


def test_copies_and_pickles_deal_alike() -> None:
    data = FederatedDataModule(DigitsDataModule(), 6)
    copies = [copy.deepcopy(data), pickle.loads(pickle.dumps(data))]  # noqa: S301  our own bytes
    data.setup("fit")
    copies += [copy.deepcopy(data), pickle.loads(pickle.dumps(data))]  # noqa: S301  its own bytes
    for other in copies:
        other.setup("fit")
        assert other.federation.fingerprint == data.federation.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clients": 0}, "num_clients=0 must be at least 1"),
        ({"rounds_per_epoch": 0}, "rounds_per_epoch=0 must be at least 1"),
        ({"train_size": 0}, "train_size=0 must be at least 1"),
        ({"train_size": 10**6}, "train_size=1000000 is more than the"),
        ({"validate_on": "train"}, "validate_on='train' must be 'test' or 'held_out'"),
        ({"num_clients": 10**4}, "needs 10000 examples"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _data(**options)


def test_held_out_validation_needs_a_held_out_part() -> None:
    with pytest.raises(ValueError, match="needs a source with val_fraction above 0"):
        FederatedDataModule(DigitsDataModule(val_fraction=0), validate_on="held_out")


@pytest.mark.parametrize("loader", ["train", "val", "test", "predict"])
def test_loaders_need_setup(loader: str) -> None:
    with pytest.raises(RuntimeError, match=r"call setup\('fit'\) first"):
        getattr(FederatedDataModule(DigitsDataModule()), f"{loader}_dataloader")()
