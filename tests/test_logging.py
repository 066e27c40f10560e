import csv
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from matplotlib.image import imread

from lit_methods.logging import log_figure, log_folder, log_table, plot_metrics


@pytest.fixture
def figure() -> Figure:
    figure = Figure(figsize=(2, 1), dpi=100)
    figure.subplots().plot([0, 1])
    return figure


def test_figure_becomes_a_png_beside_the_csv_log(tmp_path: Path, figure: Figure) -> None:
    trainer = Trainer(logger=CSVLogger(tmp_path), accelerator="cpu")
    path = log_figure(trainer, "dp/noise", figure)
    assert path == Path(trainer.log_dir or "") / "dp_noise.png"
    assert imread(path).shape[:2] == (100, 200)


def test_without_logger_nothing_is_written(tmp_path: Path, figure: Figure) -> None:
    trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu")
    assert log_figure(trainer, "curve", figure) is None
    assert not list(tmp_path.iterdir())


def test_fast_dev_run_writes_nothing(tmp_path: Path, figure: Figure) -> None:
    trainer = Trainer(fast_dev_run=True, logger=CSVLogger(tmp_path), accelerator="cpu")
    assert log_folder(trainer) is None
    assert log_figure(trainer, "curve", figure) is None
    assert log_table(trainer, "table", ["a"], [[1]]) is None
    assert not list(tmp_path.iterdir())


def test_only_rank_zero_writes(tmp_path: Path, figure: Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu")
    assert log_figure(trainer, "curve", figure) is None
    assert log_table(trainer, "table", ["a"], [[1]]) is None
    assert not list(tmp_path.iterdir())


def test_table_becomes_a_csv_file(tmp_path: Path) -> None:
    trainer = Trainer(logger=CSVLogger(tmp_path), accelerator="cpu")
    path = log_table(trainer, "dp/budget", ["step", "epsilon"], [[1, 0.5], [2, "a, b"]])
    assert path is not None
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["step", "epsilon"], ["1", "0.5"], ["2", "a, b"]]


def test_table_with_a_short_row_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu")
    with pytest.raises(ValueError, match=r"rows.*2 values.*\[3\]"):
        log_table(trainer, "t", ["a", "b"], [[1, 2], [3]])


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_takes_figures_and_tables(tmp_path: Path, figure: Figure) -> None:
    trainer = Trainer(logger=WandbLogger(save_dir=tmp_path, offline=True), accelerator="cpu")
    assert log_figure(trainer, "dp/noise", figure, step=3) is None
    assert log_table(trainer, "dp/budget", ["a"], [[1]]) is None
    trainer.logger.experiment.finish()
    media = next(tmp_path.glob("wandb/offline-run-*/files/media"))
    assert imread(next(media.glob("images/dp/noise*.png"))).shape[:2] == (100, 200)
    assert list(media.glob("table/dp/budget*.json"))


def test_tensorboard_takes_figures(tmp_path: Path, figure: Figure) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = Trainer(logger=TensorBoardLogger(tmp_path), accelerator="cpu")
    assert log_figure(trainer, "dp/noise", figure, step=3) is None
    trainer.logger.finalize("success")
    events = accumulator.EventAccumulator(trainer.log_dir).Reload()
    (image,) = events.Images("dp/noise")
    assert (image.step, image.width, image.height) == (3, 200, 100)


def test_curves_have_one_panel_per_quantity(tmp_path: Path) -> None:
    rows = [
        "epoch,step,train/loss_step,train/loss_epoch,val/loss,val/acc,dp/epsilon",
        "0,0,2.0,,,,",
        "0,9,1.5,,,,0.5",
        "0,9,,1.7,1.2,0.4,",
        "1,19,,0.9,1.0,0.6,0.8",
    ]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    path = plot_metrics(tmp_path)
    assert path == tmp_path / "curves.png"
    picture = imread(path)
    panels = 3
    assert picture.shape[1] == panels * 400
    assert all(np.ptp(part) > 0.5 for part in np.split(picture, panels, axis=1))


def test_no_metrics_no_curves(tmp_path: Path) -> None:
    assert plot_metrics(tmp_path) is None
    (tmp_path / "metrics.csv").write_text("epoch,step\n")
    assert plot_metrics(tmp_path) is None
