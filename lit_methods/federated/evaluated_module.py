"""Evaluation of a generic model and of every client's personal one, inside a Trainer."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_methods.federated.clients import Federation
from lit_methods.federated.cohort import Cohort
from lit_methods.federated.evaluation import EvaluationBatch, FederatedAccuracy
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.local_training import LocalBackend, Models
from lit_methods.federated.modes import TrainingModes
from lit_methods.federated.ranks import sum_over_ranks
from lit_methods.federated.state import FederatedState
from lit_methods.federated.strategies import Strategy

_EVALUATED_AT_ONCE = 32


class EvaluatedModule(LightningModule, ABC):
    """Holds the models of a federated run, and validates, tests and predicts with them; how they are trained is open.

    Args:
        network: Module that maps inputs `(B, ...)` to logits `(B, num_classes)`.
        num_classes: Number of classes.
        strategy: The method, which says what the personal models are.
        backend: Who evaluates them.
        buffer_policy: Whether buffers are averaged with the weights; where they stay local, the generic model has none
            and no accuracy of it is reported.
        spill_folder: Folder for personal models on disk; None keeps them in memory.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        strategy: Strategy,
        backend: LocalBackend,
        buffer_policy: Literal["aggregate", "local"],
        spill_folder: str | Path | None,
    ) -> None:
        super().__init__()
        self.strategy = strategy
        self.network = self.strategy.wrap(network)
        self.layout = ModelLayout.of(self.network)
        self.num_classes, self.backend, self.buffer_policy = num_classes, backend, buffer_policy
        self.state = FederatedState(spill_folder)
        self._accuracy: FederatedAccuracy | None = None
        self._has_personal = False
        self._modes = TrainingModes(self.network)

    @abstractmethod
    def _cohort(self, federation: Federation, clients: list[int], counts: Tensor) -> Cohort:
        """Some clients with all that they need to train.

        Args:
            federation: All clients' data.
            clients: Their numbers.
            counts: Training examples of each class of each client of the federation, `(K, C)`.
        """

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of the generic model."""
        return cast(Tensor, self.network(inputs))

    def on_validation_model_eval(self) -> None:
        """Begins anew, and remembers how the layers are trained, which fine-tuning at an evaluation needs."""
        self._forget_evaluation()
        self._modes = TrainingModes(self.network)
        super().on_validation_model_eval()

    def on_test_model_eval(self) -> None:
        """See `on_validation_model_eval`."""
        self._forget_evaluation()
        self._modes = TrainingModes(self.network)
        super().on_test_model_eval()

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Counts the correct answers of the generic model and of this rank's personal ones."""
        self._count(batch)

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """See `validation_step`."""
        self._count(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the accuracies."""
        self._log_accuracy("val")

    def on_test_epoch_end(self) -> None:
        """Logs the accuracies."""
        self._log_accuracy("test")

    def on_predict_start(self) -> None:
        """Refuses to predict where no generic model is trained.

        Raises:
            MisconfigurationException: If the method has none, or its buffers stay with the clients.
        """
        if not self._reports_generic():
            of = "buffer_policy='local'" if self.strategy.has_generic else f"strategy={type(self.strategy).__name__}"
            raise MisconfigurationException(
                f"{of} leaves no generic model to predict by. Take each client's own by personal_network(client)."
            )

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities `(B, num_classes)` by the generic model, with or without labels beside the inputs."""
        inputs = batch if isinstance(batch, Tensor) else batch[0]
        return cast(Tensor, self(inputs)).softmax(dim=-1)

    def personal_network(self, client: int) -> nn.Module:
        """A copy of the network with a client's personal model, in evaluation mode.

        Raises:
            ValueError: If the client has none: it has not taken part, or the method keeps none.
        """
        if client not in self.state.personal:
            raise ValueError(f"Client {client} has no personal model; these have one: {list(self.state.personal)}.")
        return self.layout.build(self.network, self.state.personal[client].to(self.device)).eval()

    def _reports_generic(self) -> bool:
        return self.strategy.has_generic and (self.buffer_policy == "aggregate" or not self.layout.buffer_size)

    def _count(self, batch: EvaluationBatch) -> None:
        inputs, labels, members, federation = batch
        if self._accuracy is None:
            counts = self.state.meet(federation, self.num_classes)
            self._accuracy = FederatedAccuracy(counts, self.device)
            self._personalize(federation, counts)
        self._accuracy.add_batch(labels, members)
        if self._reports_generic():
            self._accuracy.add_generic(self(inputs).argmax(dim=-1) == labels, labels, members)
        own = list(self.state.evaluated)
        for start in range(0, len(own), _EVALUATED_AT_ONCE):
            clients = own[start : start + _EVALUATED_AT_ONCE]
            models = self.state.evaluated_models(clients, self._server())
            logits = self.backend.predict(self.network, self.layout, models, inputs, self.strategy.personal_forward)
            places = torch.tensor(clients, device=self.device)
            self._accuracy.add_personal(logits.argmax(dim=-1) == labels, labels, members, places)

    def _personalize(self, federation: Federation, counts: Tensor) -> None:
        """Stores the personal models of this rank's clients for evaluation, a few at a time: there may be many."""
        own = list(range(self.global_rank, len(federation), self._world()))
        # Also once without clients, so that all ranks know whether the method has personal models.
        for start in range(0, max(1, len(own)), _EVALUATED_AT_ONCE):
            clients = own[start : start + _EVALUATED_AT_ONCE]
            with self._modes.restored(self.network):
                models = self.strategy.personalize(self._cohort(federation, clients, counts))
            if models is None:
                return
            self._has_personal = True
            self.state.keep_evaluated(clients, models)

    def _log_accuracy(self, stage: str) -> None:
        if self._accuracy is None:
            return
        figures = self._accuracy.generic_figures() if self._reports_generic() else {}
        if self._has_personal:
            self._accuracy.personal = sum_over_ranks(self._accuracy.personal, self._world())
            self._accuracy.personal_drawn = sum_over_ranks(self._accuracy.personal_drawn, self._world())
            figures |= self._accuracy.personal_figures()
        bar = {"generic_acc", "personal_acc"}
        for name, value in figures.items():
            self.log(f"{stage}/{name}", value, prog_bar=name in bar, sync_dist=True)
        self._forget_evaluation()

    def _forget_evaluation(self) -> None:
        self._accuracy, self._has_personal = None, False
        self.state.evaluated.clear()

    def _server(self) -> Models:
        return Models(self.layout.read(self.network).unsqueeze(0), self.layout.read_buffers(self.network).unsqueeze(0))

    def _world(self) -> int:
        return self.trainer.world_size
