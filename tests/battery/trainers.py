"""What the battery trains, breaks off and records with."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor

from tests.entries.toys import BATCH, EXAMPLES, Parts

STEPS_PER_EPOCH = EXAMPLES // BATCH


class Recorder(Logger):
    """Keeps every row of logged metrics."""

    name = "recorder"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step or 0, metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Interruption(Exception):
    """What `Interrupt` raises."""


class Interrupt(Callback):
    """Breaks a fit off in one hook, once a number of steps is taken."""

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self._raise)

    def _raise(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise Interruption


class BackwardLosses(Callback):
    """Keeps the loss of every batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        self.values.append(loss.item())


def toy_trainer(parts: Parts, folder: Path, *callbacks: Callback, **kwargs: Any) -> Trainer:
    """A quiet Trainer of three epochs with the callbacks of `parts`, then the given ones.

    Args:
        parts: The run.
        folder: Where it may write.
        *callbacks: Further callbacks.
        **kwargs: Trainer arguments that win over all others.
    """
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "log_every_n_steps": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(callbacks=[*parts.callbacks, *callbacks], **(quiet | parts.trainer | kwargs))
