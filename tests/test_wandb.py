"""Each room's config under the offline overlay leaves a run with settings, metrics and media, read from its file."""

import time
from pathlib import Path

import pytest

from lit_methods.bundled import find_configs
from lit_methods.runner import run
from tests.wandb_file import read_run


def _check(metrics: set[str], media: dict[str, str], settings: set[str]) -> None:
    folders, deadline = sorted(Path("runs/wandb").glob("offline-run-*")), time.monotonic() + 20
    found = [read_run(folder) for folder in folders]
    while not all(one.finished for one in found):
        assert time.monotonic() < deadline, "W&B's process has not finished the file"
        time.sleep(0.2)
        found = [read_run(folder) for folder in folders]
    assert metrics <= {name for one in found for name in one.metrics}
    assert media.items() <= {name: kind for one in found for name, kind in one.media.items()}.items()
    for one in found:
        assert {"model", "data", "trainer", "seed_everything"} <= one.config.keys()
        assert settings <= one.config["model"]["init_args"].keys()
    assert list(Path("runs/wandb").glob("offline-run-*/files/media/*/*/*"))


def _run(monkeypatch: pytest.MonkeyPatch, folder: Path, subcommand: str, config: str, *flags: str) -> None:
    monkeypatch.chdir(folder)
    run(find_configs([subcommand, "-c", config, "-c", "logger/wandb_offline.yaml", *flags]))


@pytest.mark.usefixtures("wandb_offline")
def test_differential_privacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(monkeypatch, tmp_path, "fit", "differential_privacy/digits.yaml", "--trainer.max_epochs=1")
    _check({"train/loss", "val/acc", "dp/epsilon"}, {"dp/plan": "images/separated"}, {"num_classes"})


@pytest.mark.usefixtures("wandb_offline")
def test_data_manipulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(monkeypatch, tmp_path, "fit", "data_manipulation/digits_noise.yaml", "--trainer.max_epochs=2")
    media = {
        "data_weighting/weights": "images/separated",
        "data_weighting/pictures": "images/separated",
        "data_weighting/least": "table-file",
    }
    _check({"train/loss", "val/acc", "data_weighting/effective_sample_size"}, media, {"num_classes"})


@pytest.mark.slow
@pytest.mark.usefixtures("wandb_offline")
def test_federated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(monkeypatch, tmp_path, "fit", "federated/digits.yaml", "--trainer.max_epochs=2")
    _check({"train/loss", "val/personal_acc"}, {"federated/partition": "images/separated"}, {"num_classes"})


@pytest.mark.slow
@pytest.mark.usefixtures("wandb_offline")
def test_semi_supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--data.steps_per_epoch=50", "--trainer.log_every_n_steps=10")
    _run(monkeypatch, tmp_path, "fit", "semi_supervised/digits_discriminator.yaml", *flags)
    _check({"train/loss", "val/auroc"}, {"val/weights": "images/separated"}, {"loss"})


@pytest.mark.slow
@pytest.mark.usefixtures("wandb_offline")
def test_softmax_approximation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=20", "--trainer.limit_val_batches=4")
    _run(monkeypatch, tmp_path, "fit", "softmax_approximation/docstrings.yaml", *flags)
    metrics = {"train/loss", "val/acc", "memory/softmax_factor", "softmax/relative_error"}
    _check(metrics, {"softmax/coverage": "table-file"}, {"num_classes"})


@pytest.mark.slow
@pytest.mark.usefixtures("wandb_offline")
def test_image_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("--data.num_train=40", "--data.num_val=20", "--data.num_test=20", "--data.num_knowledge=400")
    _run(
        monkeypatch, tmp_path, "fit", "image_text/digit_scenes.yaml", *small,
        "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1",
    )  # fmt: skip
    _run(monkeypatch, tmp_path, "predict", "image_text/digit_scenes.yaml", *small)
    _check({"train/loss", "val/rsum"}, {"predict/retrieval": "images/separated"}, {"temperature"})
