"""Flower's server and nodes do what one process does, and send nothing else."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from flwr.app import Context, Message, RecordDict

from lit_methods.federated import Ditto, FedAvg, FedProx, FedRep, FedRoD, LocalOnly, SpectralCoDistillation
from lit_methods.federated.flower import client_app, fit_on_flower, server_app
from lit_methods.federated.flower.client import _built
from lit_methods.federated.module import FederatedModule
from tests.federated.flower_toys import SPECTRAL, MemoryGrid, Toy, personal_of
from tests.federated.toys import CLASSES, fit, normalized, trainer, vector

pytestmark = pytest.mark.flower

ROOT = Path(__file__).parents[2]


def _momentum(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.7, momentum=0.9)


TOYS = {
    "spectral": SPECTRAL,
    "spectral, server momentum": Toy(SpectralCoDistillation, options=(("server_optimizer", _momentum),)),
    "spectral, two clients a round": Toy(SpectralCoDistillation, options=(("clients_per_round", 2),)),
    "FedAvg": Toy(FedAvg),
    "FedAvg, fine-tuned": Toy(FedAvg, (("fine_tune_epochs", 1),)),
    "FedProx": Toy(FedProx, (("mu", 0.5),)),
    "Ditto": Toy(Ditto, (("weight", 0.5),)),
    "FedRep": Toy(FedRep),
    "FedRoD": Toy(FedRoD),
    "LocalOnly": Toy(LocalOnly),
    "Ditto, BatchNorm averaged": Toy(Ditto, kind=normalized, sizes=(10, 15, 20, 25)),
    "Ditto, BatchNorm local": Toy(
        Ditto, options=(("buffer_policy", "local"),), kind=normalized, sizes=(10, 15, 20, 25)
    ),
}


def run(toy: Toy, rounds: int = 4, grid: MemoryGrid | None = None) -> tuple[FederatedModule, MemoryGrid, Any]:
    grid = MemoryGrid(client_app(toy), len(toy.sizes)) if grid is None else grid
    running = trainer(rounds)
    module, data = toy({})
    fit_on_flower(running, module, data, grid, timeout=60.0)
    return module, grid, running.callback_metrics


def alone(toy: Toy, rounds: int = 4) -> tuple[FederatedModule, Any]:
    module, data = toy({})
    return module, fit(module, rounds, data.clients).callback_metrics


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_same_models_and_log_as_in_one_process(toy: Toy) -> None:
    """Bit for bit, but for spectra: one process transforms all teachers of a round at once."""
    module, grid, log = run(toy)
    expected, expected_log = alone(toy)
    apart = 1e-12 if toy.strategy is SpectralCoDistillation else 0.0
    torch.testing.assert_close(module.network.state_dict(), expected.network.state_dict(), rtol=0, atol=apart)
    kept = {client: personal_of(grid.state(client)) for client in range(len(toy.sizes))}
    kept = {client: values for client, values in kept.items() if values is not None}
    personal = {client: expected.state.personal[client] for client in expected.state.personal}
    torch.testing.assert_close(kept, personal, rtol=0, atol=apart)
    assert {"time/wait_free", "train/loss"} <= log.keys()
    assert {"val/personal_acc", "val/generic_acc"} & log.keys()
    torch.testing.assert_close(log, expected_log, rtol=1e-6, atol=1e-7)


def test_a_second_visit_goes_on_from_the_first() -> None:
    """A node whose state is lost after two rounds ends with another personal model."""
    toy = Toy(Ditto, options=(("participation", 1.0),))

    class Forgetful(MemoryGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
            replies = super().send_and_receive(messages, timeout=timeout)
            if sum(reply.metadata.message_type == "train" for _, reply in self.log) == 8:
                self.contexts[1000].state = RecordDict()
            return replies

    _, grid, _ = run(toy)
    _, forgetful, _ = run(toy, grid=Forgetful(client_app(toy), 4))
    assert torch.equal(personal_of(grid.state(1)), personal_of(forgetful.state(1)))
    assert not torch.allclose(personal_of(grid.state(0)), personal_of(forgetful.state(0)))


def _sent(grid: MemoryGrid, kind: str) -> list[tuple[RecordDict, RecordDict]]:
    return [(sent.content, reply.content) for sent, reply in grid.log if sent.metadata.message_type == kind]


@pytest.mark.parametrize("name", ["spectral", "Ditto", "FedProx", "FedRoD", "FedRep"])
def test_messages_hold_the_shared_model_and_figures_and_nothing_else(name: str) -> None:
    _, grid, log = run(TOYS[name])
    size = vector(Toy(FedAvg).module().network).numel()
    shared = size - (5 + 1) * CLASSES if name == "FedRep" else size
    bytes_of = {record["generic"].count_bytes() for pair in _sent(grid, "train") for record in pair}
    if name != "FedRep":
        _, average, _ = run(TOYS["FedAvg"], 1)
        assert bytes_of == {average.log[-5][0].content["generic"].count_bytes()}
    for content, reply in _sent(grid, "train"):
        assert {key: list(record) for key, record in content.items()} == {"generic": ["weights"], "round": ["number"]}
        assert reply.keys() == {"generic", "report"}
        assert [(key, array.shape) for key, array in reply["generic"].items()] == [("weights", (shared,))]
        assert {key.split(":")[0] for key in reply["report"]} == {"figures", "seconds", "steps"}
    for content, reply in _sent(grid, "evaluate"):
        assert content.keys() == {"generic", "round"}
        assert {key: list(record) for key, record in reply.items()} in ({"accuracy": ["local", "drawn"]}, {})
    for content, reply in _sent(grid, "query"):
        assert not content
        assert list(reply["node"]) == ["partition-id", "num-partitions", "fingerprint", "class-counts"]
    assert log["federated/bytes_up"].item() == 3 * 8 * shared


def test_strategy_and_callbacks_are_the_users_again_after_the_fit() -> None:
    module, data = SPECTRAL({})
    strategy, running = module.strategy, trainer(1)
    callbacks = list(running.callbacks)
    fit_on_flower(running, module, data, MemoryGrid(client_app(SPECTRAL), 4), timeout=60.0)
    assert module.strategy is strategy
    assert running.callbacks == callbacks


def test_equal_builds_are_built_once_in_a_process() -> None:
    _built.cache_clear()
    run(Toy(FedAvg), 2)
    run(Toy(FedAvg), 1)
    assert _built.cache_info().misses == 1


def test_server_app_fits() -> None:
    log: list[Any] = []

    def make(config: Any) -> Any:
        log.append(trainer(config["rounds"]))
        return log[0]

    grid = MemoryGrid(client_app(SPECTRAL), 4)
    server_app(SPECTRAL, make)(grid, Context(0, 0, {}, RecordDict(), {"rounds": 2}))
    assert log[0].global_step == 2


def _refused(message: str, toy: Toy = SPECTRAL, grid: MemoryGrid | None = None, error: type = ValueError) -> None:
    with pytest.raises(error, match=message):
        run(toy, 1, grid)


def test_more_clients_in_a_round_than_nodes_are_refused() -> None:
    _refused("clients_per_round=5 is more than the 4 clients", Toy(FedAvg, options=(("clients_per_round", 5),)))


@pytest.mark.parametrize("nodes", [2, 6])
def test_another_number_of_nodes_than_clients_is_refused(nodes: int) -> None:
    _refused(
        f"partition-ids of {nodes} partitions, but the data are dealt out to 4 clients; start one node for each",
        grid=MemoryGrid(client_app(SPECTRAL), nodes),
    )


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (0, "Two nodes have the partition-id 0; each needs its own, 0 to 3"),
        (4, "A node has the partition-id 4, but there are 4 partitions"),
    ],
)
def test_partition_ids_that_do_not_match_are_refused(partition: int, message: str) -> None:
    grid = MemoryGrid(client_app(SPECTRAL), 4)
    grid.contexts[1021].node_config["partition-id"] = partition
    _refused(message, grid=grid)


def test_a_node_without_partition_id_is_refused() -> None:
    grid = MemoryGrid(client_app(SPECTRAL), 4)
    del grid.contexts[1000].node_config["partition-id"]
    _refused("Node 1000 failed to query: ValueError: The node has no partition-id", grid=grid, error=RuntimeError)


def test_nodes_with_another_partition_are_refused() -> None:
    other = Toy(SpectralCoDistillation, fingerprint="other")
    _refused("holds a part of other, but the server of toy", grid=MemoryGrid(client_app(other), 4))


def test_nodes_with_another_network_are_refused() -> None:
    other = Toy(SpectralCoDistillation, kind=normalized)
    _refused(
        "A model of 43 exchanged values came, but the network here has 53",
        grid=MemoryGrid(client_app(other), 4),
        error=RuntimeError,
    )


def test_missing_and_silent_nodes_are_told() -> None:
    grid = MemoryGrid(client_app(SPECTRAL), 3, partitions=4)
    with pytest.raises(RuntimeError, match=r"3 of 4 nodes have connected within 0\.2 s"):
        fit_on_flower(trainer(1), *SPECTRAL({}), grid, timeout=0.2)

    class Silent(MemoryGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
            replies = super().send_and_receive(messages, timeout=timeout)
            return [
                reply
                for reply in replies
                if (reply.metadata.message_type, reply.metadata.src_node_id) != ("train", 1007)
            ]

    _refused(
        r"Nodes \[1007\] did not answer to 'train' within", grid=Silent(client_app(SPECTRAL), 4), error=RuntimeError
    )


def test_several_server_processes_are_refused() -> None:
    running = trainer(1, devices=2, strategy="ddp")
    with pytest.raises(ValueError, match="The trainer has 2 processes; on Flower the nodes train"):
        fit_on_flower(running, *SPECTRAL({}), MemoryGrid(client_app(SPECTRAL), 4))


def _app(monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[ModuleType, dict[str, Any]]:
    """The app's module and its run config, in a folder of its own."""
    monkeypatch.chdir(folder)
    home = ROOT / "configs" / "federated" / "flower"
    described = tomllib.loads((home / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert described["components"] == {"serverapp": "federated_app:server", "clientapp": "federated_app:client"}
    monkeypatch.syspath_prepend(home)
    return importlib.import_module("federated_app"), described["config"]


def test_the_app_does_what_its_config_does_in_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    app, config = _app(monkeypatch, tmp_path)
    config |= {"rounds": 2, "clients": 4, "strategy": "Ditto", "lr": 0.02, "p": 0.9, "alpha": 5.0, "participation": 0.6}
    config["options"] = "--model.strategy.weight=0.3 --model.local_epochs=1"
    app.server(MemoryGrid(app.client, 4, **config), Context(0, 0, {}, RecordDict(), config))
    sent = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)["state_dict"]
    made = app.parts(config)
    assert made.model.strategy.weight == 0.3
    assert (made.datamodule.partition.p, made.datamodule.partition.alpha) == (0.9, 5.0)
    made.trainer.fit(made.model, made.datamodule)
    torch.testing.assert_close(dict(made.model.state_dict()), dict(sent), rtol=1e-6, atol=1e-6)


def test_the_app_refuses_an_unknown_strategy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    app, config = _app(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"strategy='FedNova' is none of \['Ditto', 'FedAvg', .*; name one of them"):
        app.parts(config | {"strategy": "FedNova"})


@pytest.mark.slow
def test_flowers_simulation_equals_one_process(tmp_path: Path) -> None:
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "FLWR_HOME": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-m", "tests.federated.flower_simulation", tmp_path / "run.pt"],
        check=True,
        cwd=ROOT,
        env=os.environ | quiet,
        timeout=240,
    )
    sent = torch.load(tmp_path / "run.pt", weights_only=True)
    expected, log = alone(SPECTRAL, 3)
    torch.testing.assert_close(sent["weights"], vector(expected.network), rtol=0, atol=1e-12)
    assert sent["personal_acc"] == pytest.approx(log["val/personal_acc"].item())
