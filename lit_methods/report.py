"""What the command line prints after a fit."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lit_methods.logging import log_folder, plot_metrics


def closing_report(trainer: Trainer) -> str:
    """Returns the final metrics and where the log, the curves and the checkpoints lie, one per line.

    Training metrics are left out: they are averages over an epoch of a changing model.

    Args:
        trainer: A trainer whose fit has ended.
    """
    lines = [
        (name, f"{value.item():.4f}")
        for name, value in sorted(trainer.callback_metrics.items())
        if "/" in name and not name.startswith("train/")
    ]
    folder = log_folder(trainer)
    if folder is not None:
        lines.append(("log", str(folder)))
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger) and (picture := plot_metrics(logger.log_dir)) is not None:
            lines.append(("curves", str(picture)))
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            best = "best checkpoint" if callback.monitor else "checkpoint"
            paths = {callback.best_model_path: best, callback.last_model_path: "last checkpoint"}
            lines += [(label, path) for path, label in paths.items() if path]
    width = max((len(label) for label, _ in lines), default=0)
    return "\n".join(["", *(f"{label:<{width}}  {text}" for label, text in lines)])
