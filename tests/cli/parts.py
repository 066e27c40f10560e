"""A model and data small enough to run the whole command line in a second, and what tells of each process."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_methods.logging import log_table


class TinyModule(LightningModule):
    def __init__(self, lr: float = 0.1, width: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.layer = nn.Linear(4, width)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.layer(batch[0]).square().mean()
        self.log("train/loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.layer(batch[0]).square().mean())
        self.log("toy/epsilon", torch.tensor(0.25))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test/loss", self.layer(batch[0]).square().mean())

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.layer(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Miscalling(TinyModule):
    """Calls this package with rows that do not fit their columns."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        log_table(self.trainer, "toy/table", ["column"], [[1, 2]])
        return super().training_step(batch, batch_idx)


class MiscallingCallback(Callback):
    """The same in a hook."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        log_table(trainer, "toy/table", ["column"], [[1, 2]])


class TinyData(LightningDataModule):
    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size = batch_size

    def _loader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.arange(32.0).view(8, 4) / 32), batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


class Witness(Callback):
    """Writes to `rank-<rank>.json` of the current folder what a process has seen of a fit, and where it ended."""

    def __init__(self) -> None:
        self.seen = hashlib.sha256()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        apply_to_collection(batch, Tensor, lambda tensor: self.seen.update(_bytes([tensor])))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A round of federated training is the same batch for all; its clients are shared out.
        clients = sorted(getattr(getattr(pl_module, "state", None), "personal", ()))
        told = {
            "processes": trainer.world_size,
            "steps": trainer.global_step,
            "examples": f"{self.seen.hexdigest()} {clients}",
            "weights": hashlib.sha256(_bytes(pl_module.parameters())).hexdigest(),
            "metrics": {name: value.item() for name, value in trainer.callback_metrics.items()},
        }
        Path(f"rank-{trainer.global_rank}.json").write_text(json.dumps(told))


def _bytes(tensors: Iterable[Tensor]) -> bytes:
    return b"".join(tensor.detach().cpu().numpy().tobytes() for tensor in tensors)
