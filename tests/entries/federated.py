"""Toy runs of the federated room."""

from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lit_methods
from lit_methods.datamodules.federated import ClientPartition, FederatedBatches, Rounds
from lit_methods.federated import LoopBackend
from tests.entries.toys import (
    BATCH,
    CLASSES,
    EXAMPLES,
    FROM_TORCH,
    NONE_OF_OURS,
    Bad,
    Entry,
    Parts,
    ToyData,
    nan,
    narrow,
    toy_network,
    toy_tensors,
    unknown_label,
)


class ToyClients(LightningDataModule):
    """The same tensors dealt out to six clients, and as their test set; an epoch is six rounds."""

    transform = None

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.inputs, self.labels = inputs, labels
        clients = EXAMPLES // BATCH if len(labels) else 0
        self.federation = ClientPartition(self, [torch.arange(i, len(labels), clients) for i in range(clients)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[indices], self.labels[indices]

    def train_dataloader(self) -> Rounds:
        return Rounds(self.federation, EXAMPLES // BATCH)

    def val_dataloader(self) -> FederatedBatches:
        members = torch.ones(len(self), len(self.federation), dtype=torch.bool)
        return FederatedBatches(self, members, self.federation, BATCH)

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.inputs, self.labels), batch_size=BATCH)


def _spectral_distillation(folder: Path, processes: int = 1) -> Parts:
    callback = lit_methods.SpectralDistillation(weight=5.0)
    data = ToyData(*toy_tensors(), batch_size=BATCH // processes)
    return Parts(lit_methods.Classifier(toy_network(), CLASSES), [callback], data)


def _federated_module(folder: Path, processes: int = 1) -> Parts:
    module = lit_methods.FederatedModule(
        toy_network(),
        CLASSES,
        participation=0.5,
        local_epochs=1,
        batch_size=4,
        backend=LoopBackend(),
        seconds_per_step=0.1,
    )
    return Parts(module, [], ToyClients(*toy_tensors()))


def _user_level_noise(folder: Path, processes: int = 1) -> Parts:
    noise = lit_methods.UserLevelNoise(epsilon=8.0, delta=1e-2, unsafe_seed=0)
    parts = _federated_module(folder, processes)
    return Parts(parts.module, [noise], parts.data)


def _clients(data: Callable[[], ToyData]) -> Callable[[], ToyClients]:
    return lambda: ToyClients(*data().dataset.tensors)


FEDERATIONS: dict[str, Callable[[Path], LightningDataModule]] = {
    "FederatedDataModule": lambda folder: lit_methods.FederatedDataModule(lit_methods.DigitsDataModule(), 5),
}


ENTRIES = (
    Entry(
        "SpectralDistillation",
        _spectral_distillation,
        configs=("compositions/spectral_mack.yaml",),
        reload=lambda: {"network": toy_network()},
        bad=(*FROM_TORCH, Bad("NaN input", nan(0), finite=False)),
        skips={"resumes_mid_epoch": NONE_OF_OURS},
    ),
    Entry(
        "FederatedModule",
        _federated_module,
        configs=("federated/digits.yaml", "federated/fashion_mnist.yaml", "federated/cifar10.yaml"),
        reload=lambda: {"network": toy_network()},
        bad=(
            Bad("narrow inputs", _clients(narrow), (RuntimeError, r"shapes cannot be multiplied \(4x3 and 4x6\)")),
            Bad("unknown label", _clients(unknown_label), (ValueError, "Client 0 has the labels 1 to 3, which do not")),
            Bad("NaN input", _clients(nan(*range(EXAMPLES))), finite=False),
        ),
        skips={"accumulates": "refused: gradients accumulated over rounds would average servers"},
    ),
    Entry(
        "UserLevelNoise",
        _user_level_noise,
        configs=("compositions/private_federated_digits.yaml",),
        reload=lambda: {"network": toy_network()},
        bad=(
            Bad("narrow inputs", _clients(narrow), (RuntimeError, r"shapes cannot be multiplied \(4x3 and 4x6\)")),
            Bad("unknown label", _clients(unknown_label), (ValueError, "Client 0 has the labels 1 to 3, which do not")),
            Bad("NaN input", _clients(nan(*range(EXAMPLES))), finite=True),
        ),
        skips={"accumulates": "refused: gradients accumulated over rounds would average servers"},
        refused_in_two="UserLevelNoise adds the noise in one process, but the Trainer has 2: each would",
    ),
)
