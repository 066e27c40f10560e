"""Small federations, and local training as a plain loop over a copied module."""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lit_methods.backbones import MLP
from lit_methods.federated import EvaluationBatch, LoopBackend, Strategy
from lit_methods.federated.clients import stream_seed
from lit_methods.federated.module import FederatedModule

FEATURES, CLASSES = 4, 3
LR, MOMENTUM, BATCH, EPOCHS = 0.1, 0.5, 5, 2
LOOP = {"backend": LoopBackend()}


class ToyClient:
    def __init__(self, inputs: Tensor, labels: Tensor, random: bool = False) -> None:
        self.inputs, self.labels, self.random = inputs, labels, random

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        return self.inputs[chosen], self.labels[chosen]


class ToyFederation:
    def __init__(self, clients: Sequence[ToyClient], fingerprint: str = "toy") -> None:
        self.clients, self.fingerprint = list(clients), fingerprint

    def __len__(self) -> int:
        return len(self.clients)

    def __getitem__(self, client: int) -> ToyClient:
        return self.clients[client]


def federation(sizes: Sequence[int] = (7, 12, 3, 20), shape: tuple[int, ...] = (FEATURES,)) -> ToyFederation:
    generator = torch.Generator().manual_seed(5)
    rule = torch.randn(torch.Size(shape).numel(), CLASSES, generator=generator, dtype=torch.float64)
    clients = []
    for size in sizes:
        inputs = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
        clients.append(ToyClient(inputs, (inputs.flatten(1) @ rule).argmax(dim=1)))
    return ToyFederation(clients)


def network(kind: Callable[[], nn.Module] = lambda: MLP(FEATURES, [5], CLASSES)) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return kind().double()


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, CLASSES))


def local_sgd(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM)


class Rounds:
    def __init__(self, data: ToyFederation, rounds: int = 1) -> None:
        self.data, self.rounds = data, rounds

    def __len__(self) -> int:
        return self.rounds

    def __iter__(self) -> Iterator[ToyFederation]:
        return itertools.repeat(self.data, self.rounds)


class Evaluation:
    def __init__(self, data: ToyFederation) -> None:
        test = federation((30,)).clients[0]
        generator = torch.Generator().manual_seed(6)
        members = torch.rand(30, len(data), generator=generator) < 0.5
        self.batches = [
            EvaluationBatch(test.inputs[rows], test.labels[rows], members[rows], data)
            for rows in torch.arange(30).split(16)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        return iter(self.batches)


def module(strategy: Strategy, kind: Callable[[], nn.Module] | None = None, **options: Any) -> FederatedModule:
    arguments = {
        "participation": 0.75,
        "local_epochs": EPOCHS,
        "batch_size": BATCH,
        "optimizer": local_sgd,
        "seconds_per_step": 0.01,
    }
    net = network() if kind is None else network(kind)
    return FederatedModule(net, CLASSES, strategy, **(arguments | options)).double()


def trainer(rounds: int, **options: Any) -> Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": rounds,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**(quiet | options))


def fit(fed: FederatedModule, rounds: int = 2, data: ToyFederation | None = None, **options: Any) -> Trainer:
    data = federation() if data is None else data
    running = trainer(rounds, **options)
    running.fit(fed, Rounds(data), Evaluation(data))
    return running


def fitted(strategy: Strategy, rounds: int = 3, **options: Any) -> FederatedModule:
    fed = module(strategy, **(LOOP | options))
    fit(fed, rounds)
    return fed


def orders(size: int, epochs: int, seed: int) -> list[Tensor]:
    """Batches of a client, in the order that the room promises: one permutation for each epoch, from the seed."""
    generator = torch.Generator().manual_seed(seed)
    return [batch for _ in range(epochs) for batch in torch.randperm(size, generator=generator).split(BATCH)]


def reference_training(
    model: nn.Module,
    client: ToyClient,
    seed: int,
    epochs: int = EPOCHS,
    term: Callable[[nn.Module], Tensor] = lambda _: torch.zeros(()),
    trained: Callable[[str], bool] = lambda _: True,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] = lambda m, x, y: nn.functional.cross_entropy(m(x), y),
) -> nn.Module:
    """A trained copy, with torch's optimizer over the module's own parameters."""
    model = copy.deepcopy(model)
    parameters = [p for name, p in model.named_parameters() if trained(name)]
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM)
    for batch in orders(len(client), epochs, seed):
        optimizer.zero_grad()
        (loss(model, client.inputs[batch], client.labels[batch]) + term(model)).backward()
        optimizer.step()
    return model


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def drawn(seed: int, round_number: int, clients: int, size: int) -> list[int]:
    generator = torch.Generator().manual_seed(stream_seed(seed, round_number, "cohort"))
    return sorted(torch.randperm(clients, generator=generator)[:size].tolist())
