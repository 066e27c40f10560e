"""What the LightningModules of the room share when they train."""

from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer


def with_scheduler(optimizer: Optimizer, scheduler: LRSchedulerCallable | None) -> OptimizerLRScheduler:
    """The optimizer and, if given, its scheduler, stepped after each optimizer step."""
    if scheduler is None:
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), "interval": "step"}}


def draws_figures(trainer: Trainer) -> bool:
    """Whether this process would send a figure anywhere."""
    quiet = trainer.sanity_checking or cast(Any, trainer).fast_dev_run
    return bool(trainer.loggers) and trainer.is_global_zero and not quiet
