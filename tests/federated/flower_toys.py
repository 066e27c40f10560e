"""A Flower federation in memory, and toy runs that are built alike in every process."""

import copy
import pickle
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from lightning.pytorch import LightningDataModule
from torch import nn

from lit_methods.backbones import MLP
from lit_methods.federated import LoopBackend, SpectralCoDistillation, Strategy
from lit_methods.federated.module import FederatedModule
from tests.federated.toys import CLASSES, FEATURES, Evaluation, Rounds, ToyFederation, federation, module


class ToyData(LightningDataModule):
    def __init__(self, clients: ToyFederation) -> None:
        super().__init__()
        self.clients = clients

    def train_dataloader(self) -> Rounds:
        return Rounds(self.clients)

    def val_dataloader(self) -> Evaluation:
        return Evaluation(self.clients)


def mlp() -> nn.Module:
    return MLP(FEATURES, [5], CLASSES)


@dataclass(frozen=True)
class Toy:
    """Makes a toy run; equal ones are built once in a process."""

    strategy: type[Strategy]
    arguments: tuple[tuple[str, Any], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    kind: Callable[[], nn.Module] = mlp
    sizes: tuple[int, ...] = (7, 12, 3, 20)
    fingerprint: str = "toy"

    def module(self) -> FederatedModule:
        return module(self.strategy(**dict(self.arguments)), self.kind, backend=LoopBackend(), **dict(self.options))

    def __call__(self, config: Any) -> tuple[FederatedModule, LightningDataModule]:
        clients = federation(self.sizes)
        clients.fingerprint = self.fingerprint
        return self.module(), ToyData(clients)


SPECTRAL = Toy(SpectralCoDistillation, (("generic_weight", 2.0), ("personal_weight", 3.0)))


class MemoryGrid:
    """Passes messages to a client app, and answers in any order; each node keeps its context, as bytes."""

    def __init__(self, app: ClientApp, nodes: int, partitions: int | None = None, **run_config: Any) -> None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 0  # Flower's runtime numbers its processes
        self.app, self.log = app, []
        self.contexts = {
            1000 + 7 * i: Context(
                0, 1000 + 7 * i, {"partition-id": i, "num-partitions": partitions or nodes}, RecordDict(), run_config
            )
            for i in range(nodes)
        }

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def state(self, client: int) -> RecordDict:
        return self.contexts[1000 + 7 * client].state

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in random.sample(messages := list(messages), len(messages)):
            node = message.metadata.dst_node_id
            context = pickle.loads(pickle.dumps(self.contexts[node]))  # noqa: S301  our own
            sent = copy.deepcopy(message)
            try:
                reply = self.app(sent, context)
                self.contexts[node] = context
            except Exception as failure:  # as Flower's runtime does
                reply = Message(Error(code=0, reason=f"{type(failure).__name__}: {failure}"), reply_to=sent)
            self.log.append((message, reply))
            replies.append(reply)
        return replies


def personal_of(state: RecordDict) -> torch.Tensor | None:
    found = state.get("personal")
    return torch.from_numpy(found["values"].numpy()) if isinstance(found, ArrayRecord) else None
