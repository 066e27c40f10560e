"""A small task with positions, and the Trainer that the tests of the weighting callback share."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_methods import Classifier, DataWeighting
from lit_methods.data_manipulation import weighted_mean

N, B = 24, 6
cross_entropy = nn.functional.cross_entropy


def toy_tensors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(N, 4, generator=generator)
    return inputs, (inputs @ torch.randn(4, 3, generator=generator)).argmax(1)


def train_loader(batch_size: int = B, index: bool = True) -> DataLoader:
    inputs, labels = toy_tensors()
    rows = (torch.arange(N),) if index else ()
    return DataLoader(TensorDataset(inputs, labels, *rows), batch_size)


def val_loader() -> DataLoader:
    inputs, labels = toy_tensors()
    return DataLoader(TensorDataset(inputs[:8] * 0.9, labels[:8]), 8)


def small_network(norm: bool = False) -> nn.Module:
    torch.manual_seed(1)
    middle = [nn.BatchNorm1d(6), nn.Dropout(0.3)] if norm else []
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.ReLU(), nn.Linear(6, 3))


def momentum_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.5)


def toy_classifier(norm: bool = False) -> Classifier:
    return Classifier(small_network(norm), 3, optimizer=momentum_sgd)


class Own(LightningModule):
    """A module with a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_network()

    def per_sample_loss(self, batch: Any) -> Tensor:
        return cross_entropy(self.network(batch[0]), batch[1], reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return weighted_mean(self, self.per_sample_loss(batch))

    def configure_optimizers(self) -> Any:
        return momentum_sgd(self.parameters())


def data_weighting(**options: Any) -> DataWeighting:
    return DataWeighting(val_loader(), N, **{"criterion": "loss", "warmup_epochs": 0, **options})


def fit(module: LightningModule, callback: DataWeighting | None, loader: Any = None, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    quiet |= {"enable_model_summary": False, "max_epochs": 2, "devices": 1}
    trainer = Trainer(callbacks=[callback] if callback else [], **{**quiet, **options})
    torch.manual_seed(5)
    trainer.fit(module, train_loader() if loader is None else loader)
    return trainer
