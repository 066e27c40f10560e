"""Federated learning of many clients in one Trainer: a batch is a round, and the server is the optimizer."""

from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lit_methods.errors import check_object, check_strategy
from lit_methods.federated.aggregation import Aggregation, WeightedMean
from lit_methods.federated.automatic import AutomaticBackend
from lit_methods.federated.checks import check_arguments, check_trainer, cohort_size
from lit_methods.federated.clients import Federation
from lit_methods.federated.clock import NetworkModel
from lit_methods.federated.co_distillation import SpectralCoDistillation
from lit_methods.federated.cohort import Cohort, LocalTraining, Update, merged_figures, named_figures
from lit_methods.federated.evaluated_module import EvaluatedModule
from lit_methods.federated.local_training import LocalBackend, Models, per_sample
from lit_methods.federated.ranks import from_all_ranks, sum_over_ranks
from lit_methods.federated.resuming import Setting, check_same_settings, strategy_settings
from lit_methods.federated.state import check_same_clients
from lit_methods.federated.strategies import Strategy
from lit_methods.logging import log_figure

_CHECKPOINT_KEY = "federated"
_ON_THE_BAR = ("train/loss", "federated/round")


class FederatedModule(EvaluatedModule):
    """Federated and personalized learning, simulated: each training batch is one communication round.

    A training batch is a `Federation`. The module draws the clients of the round, the strategy trains them, and the
    weighted mean of their uploads becomes the gradient of a Lightning-managed server optimizer: with SGD at rate 1
    the step is FedAvg's, with momentum FedAvgM's, with Adam FedAdam's. `global_step` counts rounds.

    Under DDP client `i` lives on rank `i % world_size`, and the gradients' all-reduce is the server's sum.

    Logs for each round its number, `train/loss`, `train/personal_loss`, the bytes and `federated/weight_norm`, `spec/*`
    of the divergences (value, factor, and gradient over that of the loss) and `time/*` of both protocols; for each
    validation and test `generic_acc`, `generic_acc_local`, `personal_acc` and its spread, see `FederatedAccuracy`.

    Args:
        network: Module that maps inputs `(B, ...)` to logits `(B, num_classes)`.
        num_classes: Number of classes.
        strategy: The method; None for spectral co-distillation.
        participation: Part of the clients that take part in a round, in (0, 1]; at least one does.
        clients_per_round: Their number, in place of `participation`.
        local_epochs: Epochs of each local stage.
        batch_size: Examples in a local batch.
        optimizer: Makes the local optimizer, anew for each stage; None for SGD at rate 0.05, momentum 0.5. It must
            treat each value alike, as SGD and Adam do.
        server_optimizer: Makes the server's; None for SGD at rate 1.
        loss: Module of `(logits, labels)` with a `reduction` attribute; None for cross-entropy.
        backend: Who trains the clients; None chooses the loop or the vectorized backend by a short trial.
        buffer_policy: Whether buffers such as BatchNorm's statistics are averaged with the weights, or stay local (no
            accuracy of the generic model is reported then).
        seed: Seed of the draws of clients and of all local randomness.
        spill_folder: Folder for personal models on disk; None keeps them in memory.
        transport: Transfer times for the clock.
        seconds_per_step: Length of a local step for the clock; None takes what was measured.

    Attributes:
        aggregation: Draws the clients of a round and combines what they send; `WeightedMean` unless a callback, such
            as `UserLevelNoise`, puts another in its place.

    Guarantees:
        - A resumed run equals the uninterrupted one, every personal model included; one with another strategy, seed,
          `buffer_policy` or other clients is refused.
        - The order and the number of processes in which clients are trained change nothing beyond rounding.
        - Personal models and private parts are in no upload, and in no one's `federated/bytes_up`.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If `loss` has no `reduction` attribute.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        strategy: Strategy | None = None,
        participation: float = 0.2,
        clients_per_round: int | None = None,
        local_epochs: int = 5,
        batch_size: int = 10,
        optimizer: OptimizerCallable | None = None,
        server_optimizer: OptimizerCallable | None = None,
        loss: nn.Module | None = None,
        backend: LocalBackend | None = None,
        buffer_policy: Literal["aggregate", "local"] = "aggregate",
        seed: int = 0,
        spill_folder: str | Path | None = None,
        transport: NetworkModel | None = None,
        seconds_per_step: float | None = None,
    ) -> None:
        check_arguments(
            num_classes,
            participation,
            clients_per_round,
            local_epochs,
            batch_size,
            buffer_policy,
            loss,
            seconds_per_step,
        )
        check_object("strategy", strategy, Strategy, "FedAvg()")
        check_object("backend", backend, LocalBackend, "LoopBackend()")
        # A path would make a checkpoint that torch.load refuses.
        spill_folder = None if spill_folder is None else str(spill_folder)
        super().__init__(
            network,
            num_classes,
            SpectralCoDistillation() if strategy is None else strategy,
            AutomaticBackend() if backend is None else backend,
            buffer_policy,
            spill_folder,
        )
        self.save_hyperparameters(
            ignore=["network", "strategy", "optimizer", "server_optimizer", "loss", "backend", "transport"]
        )
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self.participation, self.clients_per_round = participation, clients_per_round
        self.local_epochs, self.batch_size, self.seed = local_epochs, batch_size, seed
        self.seconds_per_step = seconds_per_step
        self.transport = NetworkModel() if transport is None else transport
        self._make_optimizer = optimizer or partial(SGD, lr=0.05, momentum=0.5)
        self._make_server_optimizer = server_optimizer or partial(SGD, lr=1.0)
        self.aggregation: Aggregation = WeightedMean()
        self._strategy_settings = strategy_settings(self.strategy)

    def setup(self, stage: str) -> None:
        """Refuses strategies that shard, and trainer flags that rounds have no meaning for.

        Raises:
            MisconfigurationException: If there are such.
        """
        check_strategy(self.trainer, "FederatedModule gives each client a whole model")
        if stage == "fit":
            check_trainer(self.trainer)

    def on_fit_start(self) -> None:
        """Leaves each rank the models of its own clients."""
        self.state.keep_own(self.global_rank, self._world())

    def configure_optimizers(self) -> Optimizer:
        """The server's optimizer over the generic model."""
        return self._make_server_optimizer([p for p in self.network.parameters() if p.requires_grad])

    def training_step(self, batch: Federation, batch_idx: int) -> Tensor:
        """One round: returns a loss whose gradient is the received model minus the mean of the uploads."""
        counts = self.state.meet(batch, self.num_classes)
        size = cohort_size(len(batch), self.participation, self.clients_per_round)
        drawn = self.aggregation.sample(len(batch), size, self.state.round_number, self.seed)
        own = [client for client in drawn if client % self._world() == self.global_rank]
        cohort = self._cohort(batch, own, counts)
        update = self.strategy.round(cohort)
        if update.personal is not None and self.strategy.keeps_personal:
            self.state.keep(own, update.personal)
        delta = self._server_delta(cohort, update, counts, drawn)
        self._log_round(cohort, update, drawn)
        self.state.round_number += 1
        weights = self.layout.read(self.network, detach=False)
        pull = (weights * delta).sum()
        return pull.detach() - pull + delta.square().sum() / 2

    def _cohort(self, federation: Federation, clients: list[int], counts: Tensor) -> Cohort:
        shared = self.layout.mask(self.strategy.shared(self.layout)).to(self.device)
        training = LocalTraining(
            network=self.network,
            layout=self.layout,
            shared=shared,
            backend=self.backend,
            seed=self.seed,
            epochs=self.local_epochs,
            batch_size=self.batch_size,
            optimizer=self._make_optimizer,
            per_sample_loss=per_sample(self.loss),
        )
        server = self._server()
        received = Models(*(rows.expand(len(clients), -1).clone() for rows in server))
        personal = received
        if clients and self.strategy.keeps_personal:
            personal = self.state.personal_models(clients, server)
        if clients and self.buffer_policy == "local":
            received = received._replace(buffers=self.state.buffers.rows(clients, server.buffers[0]))
        return Cohort(
            training,
            clients,
            [federation[client] for client in clients],
            self.state.round_number,
            received,
            personal,
            counts[clients].to(self.device),
        )

    def _server_delta(self, cohort: Cohort, update: Update, counts: Tensor, drawn: list[int]) -> Tensor:
        """This rank's part of the mean upload minus the server's model, times the number of ranks."""
        weights = self.layout.read(self.network)
        if update.uploads is None:
            return torch.zeros_like(weights)
        sizes = counts.sum(dim=1).to(torch.float64)
        shares = (sizes[cohort.clients] / sizes[drawn].sum()).to(weights)
        with torch.autocast(weights.device.type, enabled=False):
            moved = (update.uploads.weights - weights) * cohort.shared
            delta = self.aggregation.combine(moved, shares, cohort.clients)
            mean_buffers = shares.to(update.uploads.buffers) @ update.uploads.buffers
        if self.buffer_policy == "local":
            for client, buffers in zip(cohort.clients, update.uploads.buffers, strict=True):
                self.state.buffers[client] = buffers
        elif self.layout.buffer_size:
            self.layout.write_buffers(self.network, sum_over_ranks(mean_buffers, self._world()))
        return delta * cohort.shared * self._world()

    def _log_round(self, cohort: Cohort, update: Update, drawn: list[int]) -> None:
        payload = self._payload_bytes(cohort) if update.uploads is not None else 0
        values = {name: float(value) for name, value in named_figures(cohort.figures).items()}
        work = cohort.work(self.transport, payload, self.seconds_per_step)
        parts = from_all_ranks((len(cohort.clients), values, work), self._world())
        figures = merged_figures([(count, found) for count, found, _ in parts])
        sequential, wait_free = self.state.clock.advance(
            [each for _, _, works in parts for each in works], self.transport.aggregation_seconds
        )
        figures |= {
            "federated/round": float(self.state.round_number + 1),
            "federated/bytes_up": float(payload * len(drawn)),
            "federated/bytes_down": float(payload * len(drawn)),
            "federated/weight_norm": float(self.layout.read(self.network).norm()),
            "time/sequential": sequential,
            "time/wait_free": wait_free,
            "time/speedup": sequential / wait_free if wait_free else 1.0,
        }
        for name, figure in figures.items():
            self.log(name, figure, on_step=True, on_epoch=False, prog_bar=name in _ON_THE_BAR, batch_size=1)

    def _payload_bytes(self, cohort: Cohort) -> int:
        values = int(cohort.shared.sum()) * cohort.received.weights.element_size()
        return values + (4 * self.layout.buffer_size if self.buffer_policy == "aggregate" else 0)

    def on_train_epoch_end(self) -> None:
        """Draws the partition once, after the first round."""
        counts = self.state.class_counts
        if counts is not None and self.trainer.current_epoch == 0 and self.trainer.logger is not None:
            from lit_methods.federated.figures import partition_figure

            if self.trainer.is_global_zero and not cast(Any, self.trainer).fast_dev_run:
                log_figure(self.trainer, "federated/partition", partition_figure(counts))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the round, the personal models of all ranks, the clock, and what must stay the same on a resume."""
        state = self.state.state_dict()
        for name in ("personal", "buffers"):
            parts = [part for part in from_all_ranks(state[name], self._world()) if part]
            state[name] = {key: torch.cat([part[key] for part in parts]) for key in ("clients", "vectors") if parts}
        checkpoint[_CHECKPOINT_KEY] = state | {"backend": self.backend.state_dict(), "settings": self._settings()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what `on_save_checkpoint` added.

        Raises:
            ValueError: If the checkpoint is of another module, or a fit would go on with another strategy, seed,
                `buffer_policy` or clients than it has; nothing is restored then.
        """
        if _CHECKPOINT_KEY not in checkpoint:
            raise ValueError("The checkpoint holds no federated state: it was not saved by a FederatedModule.")
        saved = checkpoint[_CHECKPOINT_KEY]
        # `load_from_checkpoint` has no trainer, for which the property would raise.
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            check_same_settings(saved.get("settings", {}), self._settings())
            # Clients that come without a datamodule are only seen in the first round, which refuses them too.
            federation = getattr(cast(Any, self._trainer).datamodule, "federation", None)
            if federation is not None:
                check_same_clients(federation, saved.get("clients"), saved["fingerprint"])
        self.state.load_state_dict(saved)
        self.backend.load_state_dict(saved["backend"])

    def _settings(self) -> dict[str, Setting]:
        return {"seed": self.seed, "buffer_policy": self.buffer_policy} | self._strategy_settings
