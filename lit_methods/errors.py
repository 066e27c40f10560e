"""What is refused everywhere."""

from lightning.pytorch import LightningModule

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
