"""A node: one client, which trains and evaluates as in one process."""

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import cast

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lit_methods.federated import FederatedModule
from lit_methods.federated.clients import Federation
from lit_methods.federated.cohort import Cohort
from lit_methods.federated.evaluation import EvaluationBatch, FederatedAccuracy
from lit_methods.federated.flower.messages import pack, record, report, server_models, unpack, write_models
from lit_methods.federated.local_training import Models
from lit_methods.federated.state import FederatedState

RunConfig = Mapping[str, bool | float | int | str]
Build = Callable[[RunConfig], tuple[FederatedModule, LightningDataModule]]


def client_app(build: Build) -> ClientApp:
    """A Flower client: trains and evaluates as one client of `FederatedModule` does.

    The client's number is the node's `partition-id`, its data are that part of the federation that `build` returns.
    The reply to a round is the client's upload, the losses and divergences, seconds and steps; the personal model and
    private heads stay in the node's `context.state`.

    Args:
        build: Makes the module and its datamodule from the run's configuration, alike in every process: the network
            must be initialized from a fixed seed. It is called once in each process, so it must be hashable, and an
            object of a class should compare by value. The datamodule's training batch is a `Federation`.
    """
    app = ClientApp()
    app.query()(lambda message, context: _Node(build, context).describe(message))
    app.train()(lambda message, context: _Node(build, context).train(message))
    app.evaluate()(lambda message, context: _Node(build, context).evaluate(message))
    return app


class _Built:
    """What `build` makes, kept by a process for all clients that it simulates."""

    def __init__(self, build: Build, run_config: RunConfig) -> None:
        self.module, self.data = build(run_config)
        self.data.prepare_data()
        self.data.setup("fit")
        self.federation: Federation = next(iter(self.data.train_dataloader()))

    @cached_property
    def test(self) -> list[EvaluationBatch]:
        """The validation batches."""
        return list(self.data.val_dataloader())


@lru_cache(maxsize=1)
def _built(build: Build, run_config: tuple[tuple[str, bool | float | int | str], ...]) -> _Built:
    return _Built(build, dict(run_config))


class _Node:
    """One client at work on one message."""

    def __init__(self, build: Build, context: Context) -> None:
        for name in ("partition-id", "num-partitions"):
            if name not in context.node_config:
                raise ValueError(
                    f"The node has no {name}; start it with --node-config 'partition-id=0 num-partitions=10', each "
                    "with its own partition-id."
                )
        built = _built(build, tuple(sorted(context.run_config.items())))
        self.context, self.built, self.module = context, built, built.module
        self.client, self.partitions = (int(context.node_config[name]) for name in ("partition-id", "num-partitions"))

    def describe(self, message: Message) -> Message:
        """Says which client this is, and how often each class occurs in its data."""
        known = self.client in range(len(self.built.federation))
        answer = ConfigRecord(
            {
                "partition-id": self.client,
                "num-partitions": self.partitions,
                "fingerprint": self.built.federation.fingerprint,
                "class-counts": self._class_counts().tolist() if known else [],
            }
        )
        return Message(RecordDict({"node": answer}), reply_to=message)

    def train(self, message: Message) -> Message:
        """Trains, keeps what is personal, and sends the shared part of the upload."""
        cohort = self._cohort(message.content)
        update = self.module.strategy.round(cohort)
        content = RecordDict({"report": report(cohort)})
        if update.uploads is not None:
            content["generic"] = pack(update.uploads, cohort.shared, self.module.buffer_policy == "aggregate")
            if self.module.buffer_policy == "local":
                self.context.state["buffers"] = record(update.uploads.buffers[0])
        if update.personal is not None and self.module.strategy.keeps_personal:
            self.context.state["personal"] = record(torch.cat([part[0] for part in update.personal]))
        return Message(content, reply_to=message)

    def evaluate(self, message: Message) -> Message:
        """Sends the personal model's accuracy, if there is such a model."""
        cohort = self._cohort(message.content)
        personal = self.module.strategy.personalize(cohort)
        content = RecordDict()
        if personal is not None:
            local, drawn = self._accuracy(personal, cohort.class_counts)
            content["accuracy"] = MetricRecord({"local": local, "drawn": drawn})
        return Message(content, reply_to=message)

    def _cohort(self, received: RecordDict) -> Cohort:
        module, stored = self.module, self.context.state
        server, shared = server_models(module)
        server = unpack(received.array_records["generic"], server, shared)
        write_models(module, server)
        module.state = FederatedState()
        module.state.round_number = cast(int, received.config_records["round"]["number"])
        for name, store in (("personal", module.state.personal), ("buffers", module.state.buffers)):
            if name in stored.array_records:
                store[self.client] = torch.from_numpy(stored.array_records[name]["values"].numpy())
        counts = torch.zeros(self.client + 1, module.num_classes, dtype=torch.int64)
        counts[self.client] = self._class_counts()
        return module._cohort(self.built.federation, [self.client], counts)

    def _class_counts(self) -> Tensor:
        return torch.bincount(self.built.federation[self.client].labels, minlength=self.module.num_classes)

    def _accuracy(self, personal: Models, class_counts: Tensor) -> tuple[float, float]:
        module = self.module
        counter = FederatedAccuracy(class_counts, module.device)
        for batch in self.built.test:
            inputs, labels, members = (
                part.to(module.device) for part in (batch.inputs, batch.labels, batch.members[:, [self.client]])
            )
            logits = module.backend.predict(
                module.network, module.layout, personal, inputs, module.strategy.personal_forward
            )
            counter.add_batch(labels, members)
            counter.add_personal(logits.argmax(dim=-1) == labels, labels, members, torch.tensor([0]))
        figures = counter.personal_figures()
        return figures["personal_acc"], figures["personal_acc_drawn"]
