"""The server: a Trainer whose rounds are messages to the nodes."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_methods.federated import FederatedModule
from lit_methods.federated.cohort import Cohort, Update
from lit_methods.federated.evaluation import personal_spread
from lit_methods.federated.flower.client import Build, RunConfig
from lit_methods.federated.flower.messages import broadcast, merge_reports, server_models, unpack
from lit_methods.federated.flower.nodes import Nodes
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.local_training import Models
from lit_methods.federated.strategies import Strategy


def server_app(build: Build, trainer: Callable[[RunConfig], Trainer], timeout: float = 3600.0) -> ServerApp:
    """A Flower server that fits what `build` makes; see `fit_on_flower`.

    Args:
        build: As for `client_app`; of the training data only the number of clients and the fingerprint are read.
        trainer: Makes the Trainer from the run's configuration.
        timeout: Seconds within which the nodes must connect, and answer each message.
    """
    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        module, data = build(context.run_config)
        fit_on_flower(trainer(context.run_config), module, data, grid, timeout)

    app.main()(main)
    return app


def fit_on_flower(
    trainer: Trainer, module: FederatedModule, datamodule: LightningDataModule, grid: Grid, timeout: float = 3600.0
) -> None:
    """`trainer.fit`, with local training and the evaluation of personal models on the nodes of a Flower federation.

    Drawing the clients, the server's optimizer, the log, the clock and the server's checkpoints are those of
    `FederatedModule`. Personal models live as long as Flower's run: a later run begins with none.

    Args:
        trainer: The server's Trainer, on one device.
        module: What to fit; its backend and its local optimizer are the clients' affair.
        datamodule: Its validation batches are `EvaluationBatch`es; of its clients only the number and the fingerprint
            are read.
        grid: Flower's access to the nodes.
        timeout: Seconds within which the nodes must connect, and answer each message.

    Guarantees:
        - Generic and personal models are those of a run in one process with the same seeds, up to rounding.
        - An upload is the shared part of the generic model, of FedAvg's size, whatever the clients keep.

    Raises:
        ValueError: If the nodes are not one for each client, or hold another partition than the server.
        RuntimeError: If a node fails, or does not answer in time.
    """
    if trainer.world_size != 1:
        raise ValueError(f"The trainer has {trainer.world_size} processes; on Flower the nodes train, so give it one.")
    datamodule.prepare_data()
    datamodule.setup("fit")
    rounds = datamodule.train_dataloader()
    nodes = Nodes(grid, next(iter(rounds)), timeout)
    strategy, callbacks = module.strategy, cast(Any, trainer).callbacks
    module.strategy = _OnNodes(strategy, nodes, module.buffer_policy == "aggregate")
    cast(Any, trainer).callbacks = [*callbacks, _PersonalAccuracy(nodes)]
    try:
        trainer.fit(
            module,
            _Changed(rounds, lambda _: nodes.federation),
            _Changed(datamodule.val_dataloader(), lambda batch: batch._replace(federation=nodes.federation)),
        )
    finally:
        module.strategy, cast(Any, trainer).callbacks = strategy, callbacks


class _Changed:
    """A loader whose batches go through a function."""

    def __init__(self, loader: Any, change: Callable[[Any], Any]) -> None:
        self.loader, self.change = loader, change

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return map(self.change, self.loader)


class _OnNodes(Strategy):
    """A strategy whose clients are trained by their nodes.

    Args:
        strategy: What the nodes do.
        nodes: The nodes.
        sends_buffers: Whether buffers are exchanged.
    """

    keeps_personal = False

    def __init__(self, strategy: Strategy, nodes: Nodes, sends_buffers: bool) -> None:
        self.strategy, self.nodes, self.sends_buffers = strategy, nodes, sends_buffers

    @property
    def has_generic(self) -> bool:  # type: ignore[override]  # a constant of the wrapped strategy
        """Whether the server's model is a classifier by itself."""
        return self.strategy.has_generic

    def shared(self, layout: ModelLayout) -> list[bool]:
        """See `Strategy.shared`."""
        return self.strategy.shared(layout)

    def personalize(self, cohort: Cohort) -> Models | None:
        """None: personal models stay on their nodes."""
        return None

    def round(self, cohort: Cohort) -> Update:
        """Lets the nodes train, and takes over what they report."""
        content = broadcast(cohort.received, cohort.shared, self.sends_buffers, cohort.round_number)
        replies = self.nodes.ask("train", cohort.clients, content)
        merge_reports(cohort, [reply.metric_records["report"] for reply in replies])
        if any("generic" not in reply for reply in replies):
            return Update()
        models = [
            unpack(reply.array_records["generic"], cohort.received.rows(slice(0, 1)), cohort.shared)
            for reply in replies
        ]
        return Update(Models(*map(torch.cat, zip(*models, strict=True))))


class _PersonalAccuracy(Callback):
    """Logs the accuracies of the personal models, each measured by its node."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(FederatedModule, pl_module)
        counts = module.state.class_counts
        if trainer.sanity_checking or counts is None:
            return
        server, shared = server_models(module)
        content = broadcast(server, shared, module.buffer_policy == "aggregate", module.state.round_number)
        replies = self.nodes.ask("evaluate", range(len(counts)), content)
        if all("accuracy" in reply for reply in replies):
            local, drawn = (
                torch.tensor([reply.metric_records["accuracy"][name] for reply in replies])
                for name in ("local", "drawn")
            )
            for name, value in personal_spread(local, drawn, counts.sum(dim=1)).items():
                module.log(f"val/{name}", value, prog_bar=name == "personal_acc")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figures = {name: trainer.callback_metrics.get(f"val/{name}") for name in ("generic_acc", "personal_acc")}
        text = ", ".join(f"{name} {float(value):.4f}" for name, value in figures.items() if value is not None)
        if not trainer.sanity_checking:
            rank_zero_info(f"round {trainer.global_step}: {text}")
