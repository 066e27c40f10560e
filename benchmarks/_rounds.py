"""One federated round by each who can run it: the engine's backends, one Trainer for each client, Flower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_methods.backbones import MLP, SmallCNN
from lit_methods.federated import Cohort, LocalBackend, Models, Strategy
from lit_methods.federated.cohort import LocalTraining
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.local_training import per_sample

LR, MOMENTUM, BATCH, CLASSES = 0.05, 0.5, 10, 10


class Client:
    """Random examples of one client."""

    random = False

    def __init__(self, examples: int, shape: tuple[int, ...]) -> None:
        self.inputs = torch.randn(examples, *shape)
        self.labels = torch.randint(CLASSES, (examples,))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The examples at some positions."""
        chosen = torch.as_tensor(indices)
        return self.inputs[chosen], self.labels[chosen]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """The local optimizer of all sides."""
    return torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM)


def engine_round(
    strategy: Strategy, backend: LocalBackend, network: nn.Module, clients: Sequence[Client], epochs: int
) -> Callable[[], Any]:
    """A round of the engine, as a function."""
    network = strategy.wrap(network)
    layout = ModelLayout.of(network)
    training = LocalTraining(
        network, layout, torch.ones(layout.size, dtype=torch.bool), backend, 0, epochs, BATCH, sgd,
        per_sample(nn.CrossEntropyLoss()),
    )  # fmt: skip
    counts = torch.stack([torch.bincount(client.labels, minlength=CLASSES) for client in clients])
    weights = layout.read(network).expand(len(clients), -1)
    kept = Models(weights + 0.01 * torch.randn_like(weights), torch.zeros(len(clients), 0))

    def one_round() -> Any:
        received = Models(weights.clone(), kept.buffers)
        return strategy.round(Cohort(training, range(len(clients)), clients, 0, received, kept, counts))

    return one_round


class Plain(LightningModule):
    """What is trained where each client has a Trainer of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The local optimizer."""
        return sgd(self.network.parameters())


def trainer_round(network: nn.Module, clients: Sequence[Client], epochs: int) -> None:
    """Two stages for each client, each with a new Trainer."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for client in clients:
        loader = DataLoader(TensorDataset(client.inputs, client.labels), batch_size=BATCH, shuffle=True)
        for _ in ("generic", "personal"):
            network.load_state_dict(state)
            trainer = Trainer(
                accelerator="cpu", devices=1, max_epochs=epochs, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(Plain(network), loader)


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """An MLP on digits' size and a CNN on small grey images."""
    return {"MLP": (MLP(64, [64, 64], CLASSES), (1, 8, 8)), "CNN": (SmallCNN(1, CLASSES, (16, 32), 16), (1, 16, 16))}
