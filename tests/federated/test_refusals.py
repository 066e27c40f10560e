"""What the module refuses or warns of: arguments, federations, trainer flags, checkpoints."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from lit_methods.backbones import MLP
from lit_methods.federated import Ditto, FedAvg, FedRep, LocalOnly, Strategy
from lit_methods.federated.module import FederatedModule
from tests.federated.toys import (
    FEATURES,
    LOOP,
    Evaluation,
    Rounds,
    ToyClient,
    ToyFederation,
    federation,
    fit,
    fitted,
    module,
    trainer,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"participation": 0.0}, r"participation=0.0 must lie in \(0, 1\]"),
        ({"participation": 1.1}, r"participation=1.1 must lie in \(0, 1\]"),
        ({"clients_per_round": 0}, "clients_per_round=0 must be at least 1"),
        ({"local_epochs": 0}, "local_epochs=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"seconds_per_step": -0.1}, "seconds_per_step=-0.1 must be at least 0, or None"),
        ({"num_classes": 1}, "num_classes=1 must be at least 2"),
        ({"buffer_policy": "drop"}, "buffer_policy='drop' must be 'aggregate' or 'local'"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FederatedModule(**({"network": MLP(4, [], 3), "num_classes": 3} | change))


def test_loss_without_reduction_is_refused() -> None:
    with pytest.raises(TypeError, match="loss=ReLU has no `reduction` attribute"):
        FederatedModule(MLP(4, [], 3), 3, loss=nn.ReLU())


def _bad(what: str) -> ToyFederation:
    data = federation()
    if what == "empty client":
        data.clients[2] = ToyClient(torch.zeros(0, FEATURES), torch.zeros(0, dtype=torch.int64))
    elif what == "no clients":
        data.clients = []
    else:
        data.clients[1].labels = data.clients[1].labels + 1
    return data


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("empty client", "Client 2 has no training example"),
        ("no clients", "The federation has no clients"),
        ("labels", "Client 1 has the labels 1 to 3, which do not fit num_classes=3"),
    ],
)
def test_bad_federations_are_refused(what: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(module(FedAvg(), **LOOP), 1, _bad(what))


def test_more_clients_than_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="clients_per_round=5 is more than the 4 clients there are; lower it"):
        fit(module(FedAvg(), clients_per_round=5, **LOOP), 1)


def test_classes_that_nobody_holds_are_told() -> None:
    data = federation()
    for client in data.clients:
        client.labels = client.labels.clamp(max=1)
    fed = module(FedAvg(), **LOOP)
    with pytest.warns(UserWarning, match=r"No client holds an example of the classes \[2\] of num_classes=3"):
        fit(fed, 1, data)
    fit(fed, 1, data)


def test_another_partition_is_refused() -> None:
    fed = fitted(Ditto(), 1)
    other = federation()
    other.fingerprint = "other"
    with pytest.raises(ValueError, match="This run began with the clients 'toy', but the data now are 'other'"):
        fit(fed, 1, other)


def test_trainer_flags_without_meaning_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="accumulate_grad_batches=2 would average rounds"):
        fit(module(FedAvg(), **LOOP), 1, accumulate_grad_batches=2)
    running = trainer(1)
    running.strategy.precision_plugin.precision = "16-mixed"  # on a CPU Lightning turns the flag into bf16-mixed
    with pytest.raises(MisconfigurationException, match="precision='16-mixed' scales one loss"):
        running.fit(module(FedAvg(), **LOOP), Rounds(federation()), Evaluation(federation()))


@pytest.mark.parametrize(
    ("strategy", "policy", "named"),
    [
        (LocalOnly(), "aggregate", "strategy=LocalOnly"),
        (FedRep(), "aggregate", "strategy=FedRep"),
        (FedAvg(), "local", "buffer_policy='local'"),
    ],
)
def test_prediction_by_a_generic_model_that_nobody_trains_is_refused(
    strategy: Strategy, policy: str, named: str
) -> None:
    norm = nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, 3))
    fed = FederatedModule(norm, 3, strategy, buffer_policy=policy, **LOOP)
    with pytest.raises(MisconfigurationException, match=rf"^{named} leaves no generic model .*personal_network\(cl"):
        trainer(1).predict(fed, DataLoader(torch.zeros(2, FEATURES)))


def test_foreign_checkpoint_and_unknown_client_are_refused() -> None:
    fed = fitted(Ditto(), 1, participation=0.25)
    missing = next(i for i in range(4) if i not in fed.state.personal)
    with pytest.raises(ValueError, match=f"Client {missing} has no personal model; these have one"):
        fed.personal_network(missing)
    with pytest.raises(ValueError, match="The checkpoint holds no federated state"):
        fed.on_load_checkpoint({})
