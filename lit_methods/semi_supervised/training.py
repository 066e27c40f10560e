"""What the LightningModules of the room share when they train."""

import math
from functools import partial
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def with_scheduler(optimizer: Optimizer, scheduler: LRSchedulerCallable | None) -> OptimizerLRScheduler:
    """The optimizer and, if given, its scheduler, stepped after each optimizer step."""
    if scheduler is None:
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), "interval": "step"}}


def draws_figures(trainer: Trainer) -> bool:
    """Whether this process would send a figure anywhere."""
    quiet = trainer.sanity_checking or cast(Any, trainer).fast_dev_run
    return bool(trainer.loggers) and trainer.is_global_zero and not quiet


class FixMatchCosine(LambdaLR):
    """Rate `cos(7 pi k / (16 K))` at step `k` of `K`, FixMatch's schedule.

    Args:
        optimizer: The optimizer.
        total_steps: Number `K` of steps.

    Raises:
        ValueError: If `total_steps` is below 1.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps={total_steps} must be at least 1.")
        super().__init__(optimizer, partial(_cosine, total_steps))


def _cosine(total_steps: int, step: int) -> float:
    return math.cos(7 * math.pi * min(step, total_steps) / (16 * total_steps))
