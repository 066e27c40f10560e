"""The digits config as a user runs it: what the log shows, and the peers by one flag."""

from pathlib import Path

import pytest
import torch

from lit_methods.bundled import find_configs
from lit_methods.federated import FederatedModule, Strategy, VectorizedBackend
from lit_methods.runner import run

SHORT = ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
DIGITS = ["fit", "-c", "federated/digits.yaml", *SHORT]
PEERS = ("FedAvg", "FedProx", "Ditto", "FedRep", "FedRoD", "LocalOnly")

LOGGED = {
    "epoch",
    "step",
    "federated/round",
    "federated/bytes_up",
    "federated/bytes_down",
    "federated/weight_norm",
    "spec/generic_grad_ratio",
    "spec/generic_kl",
    "spec/generic_weight",
    "spec/personal_grad_ratio",
    "spec/personal_kl",
    "spec/personal_weight",
    "time/sequential",
    "time/speedup",
    "time/wait_free",
    "train/loss",
    "train/personal_loss",
    "val/generic_acc",
    "val/generic_acc_drawn",
    "val/generic_acc_local",
    "val/personal_acc",
    "val/personal_acc_drawn",
    "val/personal_acc_std",
    "val/personal_acc_weighted",
    "val/personal_acc_worst_tenth",
}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_log_has_every_figure_and_the_picture_of_the_partition() -> None:
    cli = run(find_configs(DIGITS))
    folder = Path(cli.trainer.log_dir)
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert set(header.split(",")) == LOGGED
    assert cli.trainer.progress_bar_metrics["federated/round"] == 2
    (picture,) = folder.rglob("*partition*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("peer", PEERS)
def test_one_flag_runs_a_peer_on_the_same_clients_and_rounds(peer: str) -> None:
    flags = [f"--model.strategy=lit_methods.federated.{peer}", "--trainer.logger=false", "--trainer.callbacks=null"]
    cli = run(find_configs([*DIGITS, *flags]))
    assert isinstance(cli.model, FederatedModule)
    assert type(cli.model.strategy).__name__ == peer
    assert isinstance(cli.model.strategy, Strategy)
    assert isinstance(cli.model.backend, VectorizedBackend)
    assert cli.model.state.round_number == 2
    found = cli.trainer.callback_metrics
    assert torch.isfinite(found["train/loss"])
    assert ("val/generic_acc" in found) == (peer not in ("FedRep", "LocalOnly"))
    assert ("val/personal_acc" in found) == (peer not in ("FedAvg", "FedProx"))
