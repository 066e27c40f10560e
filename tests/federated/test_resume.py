"""What a checkpoint must hold beside the models of the plain case, which test_module.py resumes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_methods.federated import AutomaticBackend, Ditto, FedAvg, LoopBackend, SpectralCoDistillation
from lit_methods.federated.cohort import Cohort, Update
from lit_methods.federated.module import FederatedModule
from tests.battery.state import plain
from tests.federated.toys import CLASSES, FEATURES, Evaluation, Rounds, federation, module, trainer

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a resumed run has a folder of its own

SIZES = (7, 12, 4, 20)


def _noisy() -> nn.Module:
    layers = (nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, CLASSES))
    return nn.Sequential(*layers)


def _fit(fed: FederatedModule, rounds: int, saving: Path, ckpt_path: Path | None = None) -> Trainer:
    running = trainer(rounds, callbacks=[ModelCheckpoint(saving, "last")], enable_checkpointing=True)
    running.fit(fed, Rounds(federation(SIZES)), Evaluation(federation(SIZES)), ckpt_path=ckpt_path)
    return running


def _resumed_equals_whole(make: Callable[[str], FederatedModule], folder: Path) -> FederatedModule:
    whole = _fit(make("whole"), 4, folder / "saved whole")
    _fit(make("half"), 2, folder / "saved half")
    fed = make("rest")
    rest = _fit(fed, 4, folder / "saved rest", folder / "saved half" / "last.ckpt")
    expected, found = (
        torch.load(folder / f"saved {name}" / "last.ckpt", weights_only=True) for name in ("whole", "rest")
    )
    for key in ("state_dict", "federated", "optimizer_states"):
        assert plain(found[key]) == plain(expected[key])
    assert rest.callback_metrics == whole.callback_metrics
    return fed


def test_statistics_that_stay_local_come_back_with_dropout_and_batchnorm(tmp_path: Path) -> None:
    fed = _resumed_equals_whole(
        lambda _: module(Ditto(), _noisy, buffer_policy="local", backend=LoopBackend()), tmp_path
    )
    assert len(fed.state.buffers) > 0


@pytest.mark.parametrize("given_as", [str, Path])
def test_models_on_disk_come_back_into_another_folder(given_as: type, tmp_path: Path) -> None:
    def make(name: str) -> FederatedModule:
        folder = given_as(tmp_path / name)
        return module(SpectralCoDistillation(2.0, 3.0), spill_folder=folder, backend=LoopBackend())

    fed = _resumed_equals_whole(make, tmp_path)
    files = [path.name for path in (tmp_path / "rest").glob("*.npy")]
    assert sorted(files) == sorted(f"client_{client}.npy" for client in fed.state.personal)


@pytest.mark.parametrize("choice", ["loop", "vectorized"])
def test_the_automatic_choice_is_not_made_anew(choice: str, tmp_path: Path) -> None:
    def make(name: str) -> FederatedModule:
        backend = AutomaticBackend()
        if name != "rest":
            backend.choice = choice
        return module(SpectralCoDistillation(2.0, 3.0), backend=backend)

    backend = _resumed_equals_whole(make, tmp_path).backend
    assert isinstance(backend, AutomaticBackend)
    assert backend.choice == choice
    assert not backend.trial_seconds


class _Clients(LightningDataModule):
    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.federation = federation(sizes)

    def train_dataloader(self) -> Rounds:
        return Rounds(self.federation)

    def val_dataloader(self) -> Evaluation:
        return Evaluation(self.federation)


@pytest.fixture(scope="module")
def ditto(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one round of Ditto(0.3)."""
    folder = tmp_path_factory.mktemp("ditto")
    _fit(module(Ditto(0.3), backend=LoopBackend(), seed=4), 1, folder)
    return folder / "last.ckpt"


def _with(path: Path, change: Callable[[dict[str, Any]], object], folder: Path) -> Path:
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint["federated"])
    torch.save(checkpoint, folder / "changed.ckpt")
    return folder / "changed.ckpt"


def _snapshot(fed: FederatedModule) -> object:
    return plain([fed.state_dict(), fed.state.state_dict()])


@pytest.mark.parametrize(
    ("options", "clients", "message"),
    [
        ({"strategy": FedAvg()}, 4, "has strategy='Ditto' and can't go on with strategy='FedAvg', which"),
        (
            {"strategy": Ditto(0.5)},
            4,
            r"has strategy.weight=0.3 .*weight=0.5, .*Pass strategy.weight=0.3, or begin a new",
        ),
        ({"strategy": Ditto(0.3, 2)}, 4, "has strategy.personal_epochs=None and can't go on with .*personal_epochs=2"),
        ({"seed": 5}, 4, "has seed=4 and can't go on with seed=5, .*Pass seed=4, or begin a new run without ckpt_path"),
        ({"buffer_policy": "local"}, 4, "has buffer_policy='aggregate' and can't go on with buffer_policy='local'"),
        ({}, 3, "began with num_clients=4, but the data now have num_clients=3: .*Pass num_clients=4, or begin a new"),
    ],
)
def test_another_run_is_refused_and_the_module_left_as_it_was(
    options: dict[str, Any], clients: int, message: str, ditto: Path
) -> None:
    fed = module(**({"strategy": Ditto(0.3), "backend": LoopBackend(), "seed": 4} | options))
    before = _snapshot(fed)
    with pytest.raises(ValueError, match=message):
        trainer(2).fit(fed, datamodule=_Clients(SIZES[:clients]), ckpt_path=ditto)
    assert _snapshot(fed) == before


def test_other_clients_without_a_datamodule_are_refused_before_they_train(ditto: Path) -> None:
    fed, data = module(Ditto(0.3), backend=LoopBackend(), seed=4), federation(SIZES[:3])
    with pytest.raises(ValueError, match="began with num_clients=4, but the data now have num_clients=3"):
        trainer(2).fit(fed, Rounds(data), Evaluation(data), ckpt_path=ditto)
    assert fed.state.round_number == 1


def test_settings_that_a_checkpoint_does_not_tell_refuse_nothing(ditto: Path, tmp_path: Path) -> None:
    old = _with(ditto, lambda state: [state.pop(name) for name in ("settings", "clients")], tmp_path)
    fed = module(FedAvg(), backend=LoopBackend(), seed=5)
    trainer(2).fit(fed, datamodule=_Clients(SIZES), ckpt_path=old)
    assert fed.state.round_number == 2


def test_what_a_strategy_counts_is_no_setting(tmp_path: Path) -> None:
    class Counting(FedAvg):
        seen = 0

        def round(self, cohort: Cohort) -> Update:
            self.seen += 1
            return super().round(cohort)

    _fit(module(Counting(), backend=LoopBackend()), 1, tmp_path)
    fed = module(Counting(), backend=LoopBackend())
    trainer(2).fit(fed, datamodule=_Clients(SIZES), ckpt_path=tmp_path / "last.ckpt")
    assert fed.strategy.seen == 1


def test_evaluation_goes_on_under_other_settings(ditto: Path) -> None:
    fed = module(FedAvg(), backend=LoopBackend(), seed=5)
    trainer(1).test(fed, Evaluation(federation(SIZES)), ckpt_path=ditto, verbose=False)
    loaded = FederatedModule.load_from_checkpoint(
        ditto, network=module(FedAvg()).network, strategy=FedAvg(), seed=6, weights_only=True
    )
    torch.testing.assert_close(loaded.network.state_dict(), fed.network.state_dict(), check_dtype=False)
    assert loaded.state.round_number == fed.state.round_number == 1
