"""What the LightningModules of the room share when they train."""

import math
from functools import partial
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

CLASS_COUNT = "lit_methods_num_classes"
"""Where a checkpoint keeps its number of classes; `load_from_checkpoint` overwrites the hyperparameters' entry."""


def with_scheduler(optimizer: Optimizer, scheduler: LRSchedulerCallable | None) -> OptimizerLRScheduler:
    """The optimizer and, if given, its scheduler, stepped after each optimizer step."""
    if scheduler is None:
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), "interval": "step"}}


def draws_figures(trainer: Trainer) -> bool:
    """Whether this process would send a figure anywhere."""
    quiet = trainer.sanity_checking or cast(Any, trainer).fast_dev_run
    return bool(trainer.loggers) and trainer.is_global_zero and not quiet


def check_class_count(checkpoint: dict[str, Any], num_classes: int) -> None:
    """Refuses a checkpoint of another number of classes.

    Raises:
        ValueError: If it says so.
    """
    found = checkpoint.get(CLASS_COUNT, num_classes)
    if found != num_classes:
        raise ValueError(
            f"The checkpoint is of num_classes={found}, this model has num_classes={num_classes}; build it with the "
            "checkpoint's number, or train anew."
        )


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
