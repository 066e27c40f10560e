"""What is refused everywhere."""

import math
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy

IMPORT_HINT = (
    "Classes of pytorch_lightning are not those of lightning.pytorch. Replace `import pytorch_lightning as pl` by "
    "`import lightning.pytorch as pl`, in the module and where the Trainer is made."
)


def check_lightning(pl_module: object) -> None:
    """Refuses a module that is written against `pytorch_lightning`.

    Args:
        pl_module: What a Trainer handed to a callback.

    Raises:
        TypeError: If it is no LightningModule of `lightning.pytorch`.
    """
    if not isinstance(pl_module, LightningModule):
        raise TypeError(f"{type(pl_module).__name__} is no LightningModule of lightning.pytorch. {IMPORT_HINT}")


def check_strategy(trainer: Trainer, reason: str) -> None:
    """Refuses strategies that shard parameters.

    Args:
        trainer: The Trainer.
        reason: Who needs whole parameters in each process, and what for: the second half of the sentence.

    Raises:
        MisconfigurationException: Under FSDP, DeepSpeed and other strategies than one device and DDP.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy) or not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise MisconfigurationException(
            f"strategy={type(strategy).__name__} may shard parameters, but {reason}. Run on one device or with"
            " strategy='ddp'."
        )


def check_at_least(name: str, value: float, least: float = 0) -> None:
    """Refuses a number below a bound, NaN and infinity.

    Raises:
        ValueError: Naming the argument and its value.
    """
    if not least <= value < math.inf:
        raise ValueError(f"{name}={value} must be at least {least}, and finite.")


def check_above(name: str, value: float, bound: float = 0) -> None:
    """Refuses a number that is not above a bound, NaN and infinity.

    Raises:
        ValueError: Naming the argument and its value.
    """
    if not bound < value < math.inf:
        raise ValueError(f"{name}={value} must be above {bound}, and finite.")


def check_share(name: str, value: float) -> None:
    """Refuses a number outside [0, 1], and NaN.

    Raises:
        ValueError: Naming the argument and its value.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie in [0, 1].")


def check_rising(name: str, ends: Any) -> None:
    """Refuses a range whose two ends are not finite, or do not rise.

    Raises:
        ValueError: Naming the argument and its value.
    """
    if len(ends) != 2 or not -math.inf < ends[0] < ends[1] < math.inf:
        raise ValueError(f"{name}={tuple(ends)} must rise from one finite number to another, as in (-1.0, 1.0).")


def check_choice(name: str, value: object, options: tuple[object, ...]) -> None:
    """Refuses what is none of the options.

    Raises:
        ValueError: Naming the argument, its value and the options.
    """
    if value not in options:
        raise ValueError(f"{name} must be one of {options}, but is {value!r}.")


def check_object(name: str, value: object, kind: type, example: str) -> None:
    """Refuses what stands for an object, such as its name or its class; None passes.

    Args:
        name: The argument.
        value: What was passed.
        kind: Class that it must be an instance of.
        example: What to pass instead.

    Raises:
        TypeError: Naming the argument, its value and what it must be.
    """
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name}={value!r:.80} must be a {kind.__name__}, as {example}.")


def check_factory(name: str, value: object, example: str = "partial(torch.optim.SGD, lr=0.1)") -> None:
    """Refuses what makes no optimizer or scheduler: a name, or one that is made already; None passes.

    Raises:
        TypeError: Naming the argument, its value and what it must be.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name}={value!r:.80} must be a function that makes it, as {example}.")
