"""Small models, data and Trainers that the tests of the privacy callback share."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_methods.callbacks import BandedSquareRootNoise

EXAMPLES, FEATURES, CLASSES = 42, 6, 3


class Toy(LightningModule):
    """A perceptron of somebody else's project: it knows nothing of privacy."""

    def __init__(self, momentum: float = 0.9, weight_decay: float = 0.01, network: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = network or nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES))
        self.options = {"lr": 0.2, "momentum": momentum, "weight_decay": weight_decay}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), **self.options)


class Judged(Toy):
    """Also knows its accuracy."""

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/acc", (self.net(batch[0]).argmax(dim=1) == batch[1]).float().mean())


def toy_data(examples: int = EXAMPLES) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    inputs = 2 * torch.randn(examples, FEATURES, generator=generator)
    return TensorDataset(inputs, (inputs[:, :CLASSES]).argmax(dim=1))


def toy_loader(batch_size: int = 8, **options: Any) -> DataLoader[Any]:
    return DataLoader(toy_data(), batch_size=batch_size, shuffle=True, **options)


def private(**options: Any) -> BandedSquareRootNoise:
    if "noise_multiplier" not in options:
        options.setdefault("epsilon", 8.0)
    return BandedSquareRootNoise(**{"delta": 1e-5, "unsafe_seed": 3, **options})


def toy_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **options})


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])
