"""Clients shared out to two gloo processes: what the checkpoint and the log hold is that of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_methods.federated import Ditto, LoopBackend, SpectralCoDistillation, Strategy
from lit_methods.federated.module import FederatedModule
from tests.federated.toys import Evaluation, Rounds, federation, module, normalized, trainer
from tests.gloo import GlooPool, ddp_trainer_kwargs

pytestmark = pytest.mark.ddp

SIZES = (7, 12, 4, 20, 9)


CASES: dict[str, tuple[type[Strategy], Any, dict[str, Any]]] = {
    "spectral": (SpectralCoDistillation, None, {}),
    "one client a round": (SpectralCoDistillation, None, {"clients_per_round": 1}),
    "BatchNorm averaged": (Ditto, normalized, {}),
    "BatchNorm local": (Ditto, normalized, {"buffer_policy": "local"}),
    "on disk": (SpectralCoDistillation, None, {"spill_folder": "clients"}),
}


def _folder(folder: Path, rounds: int, world_size: int) -> Path:
    return folder / f"{rounds} rounds by {world_size}"


def _fit(folder: Path, case: str, rounds: int, world_size: int, ckpt_path: Path | None) -> Trainer:
    strategy, kind, options = CASES[case]
    if "spill_folder" in options:
        options = options | {"spill_folder": folder / options["spill_folder"]}
    fed = module(strategy(), kind, backend=LoopBackend(), **options)
    placement = ddp_trainer_kwargs() if world_size > 1 else {}
    saving = ModelCheckpoint(_folder(folder, rounds, world_size), "last")
    running = trainer(rounds, callbacks=[saving], enable_checkpointing=True, **placement)
    running.fit(fed, Rounds(federation(SIZES)), Evaluation(federation(SIZES)), ckpt_path=ckpt_path)
    return running


def _run(rank: int, world_size: int, folder: Path, case: str) -> tuple[dict[str, float], list[int]]:
    """Three rounds, broken off after each; the log, and the clients that this rank keeps."""
    at = None
    for rounds in (1, 2, 3):
        running = _fit(folder, case, rounds, world_size, at)
        at = _folder(folder, rounds, world_size) / "last.ckpt"
    fed = running.lightning_module
    assert isinstance(fed, FederatedModule)
    log = {name: float(value) for name, value in running.callback_metrics.items()}
    return log, list(fed.state.personal)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a resumed run has a folder of its own
@pytest.mark.parametrize("case", CASES)
def test_resumed_twice_two_processes_keep_and_log_what_one_does(case: str, gloo: GlooPool, tmp_path: Path) -> None:
    log, kept = _run(0, 1, tmp_path, case)
    ranks = gloo.run(_run, tmp_path, case)
    alone, both = (torch.load(_folder(tmp_path, 3, n) / "last.ckpt", weights_only=True) for n in (1, 2))
    torch.testing.assert_close(both["state_dict"], alone["state_dict"], rtol=1e-6, atol=1e-9)
    for name in ("personal", "buffers"):
        expected, found = (_by_client(saved["federated"][name]) for saved in (alone, both))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    for rank, (found, clients) in enumerate(ranks):
        assert clients == [client for client in kept if client % 2 == rank]
        assert found == pytest.approx(log, rel=1e-6, abs=1e-9)


def _by_client(saved: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    if not saved:
        return {}
    clients = saved["clients"].tolist()
    assert len(set(clients)) == len(clients)
    return dict(zip(clients, saved["vectors"], strict=True))
