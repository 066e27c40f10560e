"""What is refused everywhere."""

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
