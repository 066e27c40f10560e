"""What a checkpoint must hold beside the models of the plain case, which test_module.py resumes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_methods.federated import AutomaticBackend, Ditto, LoopBackend, SpectralCoDistillation
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
