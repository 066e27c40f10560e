"""User-level privacy on the server of a federated module: clipping, noise, cohorts, resume, and what is refused."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lit_methods import Classifier, UserLevelNoise
from lit_methods.backbones import MLP
from lit_methods.differential_privacy import BandedSquareRoot, Identity, UserLevelRounds, Workload
from lit_methods.differential_privacy.functional import gaussian_noise_multiplier, toeplitz_sensitivity
from lit_methods.federated import FedAvg, LoopBackend, SpectralCoDistillation
from lit_methods.federated.aggregation import WeightedMean
from lit_methods.federated.clients import stream_seed
from lit_methods.federated.module import FederatedModule
from tests.federated.toys import (
    CLASSES,
    FEATURES,
    Evaluation,
    Rounds,
    federation,
    fit,
    module,
    network,
    reference_training,
    trainer,
    vector,
)

SIZES = (7, 12, 3, 20, 9, 6)


def _federated(strategy: Any = None, **options: Any) -> FederatedModule:
    defaults = {"backend": LoopBackend(), "participation": 0.34}
    return module(SpectralCoDistillation() if strategy is None else strategy, **(defaults | options))


class Weights(Callback):
    """The server's weights after each round."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.rows.append(vector(pl_module.network).clone())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.rows.append(vector(pl_module.network).clone())


def test_without_noise_it_is_the_mean_of_clipped_updates_of_cohorts_in_turn() -> None:
    data, norm = federation(SIZES), 0.3
    fed = _federated(FedAvg())
    fit(fed, 4, data, callbacks=[UserLevelNoise(noise_multiplier=0.0, max_norm=norm)])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0)).tolist()
    server = network()
    clipped = 0
    for number in range(4):
        total = torch.zeros(len(vector(server)), dtype=torch.float64)
        for client in (order[number % 3], order[number % 3 + 3]):
            sent = reference_training(copy.deepcopy(server), data[client], stream_seed(0, client, number, "generic"))
            update = vector(sent) - vector(server)
            clipped += int(update.norm() > norm)
            total += update * min(1.0, norm / float(update.norm()))
        nn.utils.vector_to_parameters(vector(server) + total / 2, server.parameters())
    assert clipped > 0
    torch.testing.assert_close(vector(fed.network), vector(server), rtol=0, atol=1e-5)


def test_the_servers_steps_carry_the_strategys_noise() -> None:
    def wide() -> nn.Module:
        return MLP(FEATURES, [2500], CLASSES)

    still = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}
    fed, seen = _federated(FedAvg(), kind=wide, **still), Weights()
    noise = UserLevelNoise(noise_multiplier=1.5, max_norm=2.0, unsafe_seed=3)
    fit(fed, 6, federation(SIZES), callbacks=[noise, seen])
    steps = torch.stack(seen.rows).diff(dim=0)
    column = torch.tensor([1.0, 0.5, 0.375], dtype=torch.float64)
    matrix = sum(torch.diag(torch.full((6 - j,), float(c), dtype=torch.float64), -j) for j, c in enumerate(column))
    inverse = torch.linalg.inv(matrix)
    scale = 1.5 * toeplitz_sensitivity(column, 6, 2, 3) * 2.0 / 2
    found = steps @ steps.T / steps.shape[1]
    torch.testing.assert_close(found, scale**2 * inverse @ inverse.T, rtol=0, atol=0.06 * scale**2)


@pytest.mark.parametrize(("clients", "size", "cohorts"), [(6, 2, 3), (10, 3, 3), (7, 7, 1), (5, 4, 1), (9, 1, 9)])
def test_each_client_takes_part_once_in_a_turn(clients: int, size: int, cohorts: int) -> None:
    rounds = UserLevelRounds(20, Workload.sgd(), epsilon=1.0)
    drawn = [rounds.sample(clients, size, number, seed=4) for number in range(20)]
    for turn in range(0, 20 - cohorts, cohorts):
        assert sorted(client for group in drawn[turn : turn + cohorts] for client in group) == list(range(clients))
    assert {len(group) for group in drawn} <= {clients // cohorts, -(-clients // cohorts)}
    assert drawn != [rounds.sample(clients, size, number, seed=5) for number in range(20)] or cohorts == 1


@pytest.mark.parametrize("strategy", [FedAvg, SpectralCoDistillation])
def test_the_whole_budget_is_spent_on_the_planned_rounds(strategy: Any, caplog: pytest.LogCaptureFixture) -> None:
    noise, fed = UserLevelNoise(epsilon=3.0, delta=1e-3, factorization=Identity()), _federated(strategy())
    own = fed.aggregation
    with caplog.at_level("INFO"):
        running = fit(fed, 5, federation(SIZES), callbacks=[noise])
    assert "(3, 0.001)-differential privacy for the model after each of the 5 of 5 rounds" in caplog.text
    assert running.callback_metrics["dp/epsilon"].item() == pytest.approx(3.0, rel=1e-5)
    server = noise.rounds.server
    assert server.accounting.noise_multiplier == gaussian_noise_multiplier(3.0, 1e-3)
    # Independent noise: a client's two rounds count as one of sqrt(2) times the norm.
    assert server.accounting.noise_std == pytest.approx(math.sqrt(2) * server.accounting.noise_multiplier)
    assert fed.aggregation is own
    assert isinstance(own, WeightedMean)


def test_the_servers_momentum_shapes_the_noise() -> None:
    def momentum(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0, momentum=0.8)

    noise = UserLevelNoise(epsilon=3.0, delta=1e-3)
    fit(_federated(FedAvg(), server_optimizer=momentum), 6, federation(SIZES), callbacks=[noise])
    expected = BandedSquareRoot().strategy(Workload.sgd(0.8), noise.rounds.server.accounting.strategy.participation, 10)
    assert noise.rounds.server.accounting.strategy.coefficients.tolist() == expected.coefficients.tolist()


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    def noise() -> UserLevelNoise:
        return UserLevelNoise(epsilon=5.0, delta=1e-3, unsafe_seed=1)

    whole, half, rest = _federated(), _federated(), _federated()
    fit(whole, 6, federation(SIZES), callbacks=[noise()])

    class Killed(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 4:
                raise KeyboardInterrupt

    keep = ModelCheckpoint(tmp_path, "half")
    with pytest.raises(SystemExit):
        fit(half, 6, federation(SIZES), callbacks=[noise(), keep, Killed()], enable_checkpointing=True)
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    running = trainer(6, callbacks=[noise()])
    data = federation(SIZES)
    running.fit(rest, Rounds(data), Evaluation(data), ckpt_path=tmp_path / "half.ckpt")
    torch.testing.assert_close(rest.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0)
    for client in whole.state.personal:
        assert torch.equal(rest.state.personal[client], whole.state.personal[client])


def test_a_run_whose_noise_is_not_known_is_not_continued(tmp_path: Path) -> None:
    plain = _federated()
    fit(plain, 2, federation(SIZES), callbacks=[ModelCheckpoint(tmp_path, "plain")], enable_checkpointing=True)
    data, running = federation(SIZES), trainer(6, callbacks=[UserLevelNoise(epsilon=5.0, delta=1e-3)])
    with pytest.raises(ValueError, match=r"go on after round 2, but the noise stands after round 0.*Start a new run"):
        running.fit(_federated(), Rounds(data), Evaluation(data), ckpt_path=tmp_path / "plain.ckpt")


def test_another_budget_is_refused_on_resume(tmp_path: Path) -> None:
    keep, data = ModelCheckpoint(tmp_path, "half"), federation(SIZES)
    noise = UserLevelNoise(epsilon=5.0, delta=1e-3)
    fit(_federated(), 2, data, callbacks=[noise, keep], enable_checkpointing=True)
    running = trainer(6, callbacks=[UserLevelNoise(epsilon=6.0, delta=1e-3)])
    with pytest.raises(ValueError, match=r"belongs to another private run: rounds, .*noise_multiplier"):
        running.fit(_federated(), Rounds(data), Evaluation(data), ckpt_path=tmp_path / "half.ckpt")


def _normalized() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES))


def test_what_voids_the_guarantee_is_refused() -> None:
    noise = UserLevelNoise(epsilon=1.0, delta=1e-3)
    with pytest.raises(MisconfigurationException, match=r"Classifier has no `aggregation`.*BandedSquareRootNoise"):
        noise.setup(trainer(2), Classifier(MLP(FEATURES, [], CLASSES), CLASSES), "fit")
    with pytest.raises(MisconfigurationException, match=r"network.0.running_mean are averaged .*GroupNorm"):
        fit(_federated(kind=_normalized), 2, callbacks=[noise])
    with pytest.raises(MisconfigurationException, match="set max_epochs or max_steps"):
        fit(_federated(), -1, callbacks=[noise])
    running = trainer(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(running), "world_size", 2)
        with pytest.raises(MisconfigurationException, match="the Trainer has 2: each would add its own"):
            noise.setup(running, _federated(), "fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give either epsilon or noise_multiplier"),
        ({"epsilon": -1.0}, "epsilon=-1.0 must be above 0, and finite"),
        ({"epsilon": 1.0, "delta": 0.0}, r"delta must lie in \(0, 1\)"),
        ({"epsilon": 1.0, "max_norm": 0.0}, "^max_norm=0.0 must be above 0, and finite"),
        ({"noise_multiplier": float("inf")}, "noise_multiplier=inf must be .*, and finite"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UserLevelNoise(**options)


def test_a_generous_delta_is_told() -> None:
    with pytest.warns(UserWarning, match="delta=0.5 allows to publish one of 6 clients outright"):
        fit(_federated(), 2, federation(SIZES), callbacks=[UserLevelNoise(epsilon=1.0, delta=0.5)])
