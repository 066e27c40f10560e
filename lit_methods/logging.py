"""Figures and tables to whatever logger the trainer has, and as files where no logger takes them."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STAGES = ("train", "val", "test")


def log_folder(trainer: Trainer) -> Path | None:
    """Returns the folder of the run, or None without a logger and under `fast_dev_run`, which leave no files.

    Unlike `trainer.log_dir` this makes no collective call, so rank zero may ask alone.

    Args:
        trainer: A trainer on rank zero.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it outside of __init__
        return None
    for logger in trainer.loggers:
        folder = getattr(logger, "log_dir", None) or logger.save_dir
        if folder is not None:
            return Path(folder)
    return Path(trainer.default_root_dir) if trainer.loggers else None


def log_figure(trainer: Trainer, key: str, figure: "Figure", step: int | None = None) -> Path | None:
    """Sends a figure to every logger that takes pictures; if none does, writes a PNG to the log folder.

    Only rank zero does anything.

    Args:
        trainer: The trainer whose loggers are used.
        key: Name such as `dp/noise`; the part before the slash makes a panel group.
        figure: The figure, built without pyplot.
        step: Optimizer steps so far; None means `trainer.global_step`.

    Returns:
        The PNG's path, or None if a logger took the figure, off rank zero, without a logger, and under
        `fast_dev_run`.
    """
    if not trainer.is_global_zero:
        return None
    step = trainer.global_step if step is None else step
    taken = False
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [figure], step=step)
            taken = True
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(key, figure, global_step=step, close=False)
            taken = True
    folder = log_folder(trainer)
    if taken or folder is None:
        return None
    path = _file_for(folder, key, "png")
    figure.savefig(path)
    return path


def log_table(trainer: Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path | None:
    """Sends a table to W&B; without W&B, writes a CSV file to the log folder.

    Only rank zero does anything.

    Args:
        trainer: The trainer whose loggers are used.
        key: Name such as `dp/budget`.
        columns: Column names.
        rows: One sequence per row, as long as `columns`.

    Returns:
        The CSV file's path, or None if W&B took the table, off rank zero, without a logger, and under
        `fast_dev_run`.

    Raises:
        ValueError: If a row is not as long as `columns`.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"rows: each row needs {len(columns)} values, one per column, but {list(row)} was given.")
    if not trainer.is_global_zero:
        return None
    taken = False
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(key, columns=list(columns), data=[list(row) for row in rows])
            taken = True
    folder = log_folder(trainer)
    if taken or folder is None:
        return None
    path = _file_for(folder, key, "csv")
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def plot_metrics(log_dir: str | Path) -> Path | None:
    """Draws the curves of a CSVLogger's `metrics.csv` as `curves.png`, one panel per quantity.

    `train/acc` and `val/acc` share a panel; a quantity without a stage, such as `dp/epsilon`, has its own.

    Args:
        log_dir: The logger's version folder.

    Returns:
        The picture's path, or None if no metrics were logged.
    """
    source = Path(log_dir) / "metrics.csv"
    if not source.is_file():
        return None
    with source.open(newline="") as file:
        records = list(csv.DictReader(file))
    panels: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for name, value in record.items():
            if value and name not in ("step", "epoch"):
                panels[_panel_of(name)][name].append((float(record["step"]), float(value)))
    if not panels:
        return None

    from matplotlib.figure import Figure  # here, because most runs of the command line draw nothing

    figure = Figure(figsize=(4 * len(panels), 3), layout="constrained")
    for axes, (panel, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set(title=panel, xlabel="step")
        axes.legend()
    path = Path(log_dir) / "curves.png"
    figure.savefig(path)
    return path


def _panel_of(name: str) -> str:
    stage, slash, quantity = name.partition("/")
    quantity = quantity if slash and stage in _STAGES else name
    return quantity.removesuffix("_step").removesuffix("_epoch")


def _file_for(folder: Path, key: str, suffix: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{key.replace('/', '_')}.{suffix}"
