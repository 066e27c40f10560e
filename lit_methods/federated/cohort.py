"""The clients that take part in a round, as a strategy sees them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_methods.federated.clients import ClientDataset, stream_seed
from lit_methods.federated.clock import NetworkModel, Work
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.local_training import LocalBackend, LocalStage, Models
from lit_methods.federated.penalties import Penalty, SpectralPenalty


@dataclass(frozen=True)
class LocalTraining:
    """What all local training of a run has in common.

    Attributes:
        network: The architecture.
        layout: Its layout.
        shared: Which of the D values the server and the clients exchange, `(D,)`.
        backend: Who trains.
        seed: Seed of the run.
        epochs: Epochs of a stage.
        batch_size: Examples in a batch.
        optimizer: Makes the optimizer of a stage.
        per_sample_loss: Losses of logits and labels.
    """

    network: nn.Module
    layout: ModelLayout
    shared: Tensor
    backend: LocalBackend
    seed: int
    epochs: int
    batch_size: int
    optimizer: Callable[[list[Tensor]], Optimizer]
    per_sample_loss: Callable[[Tensor, Tensor], Tensor]


class Update(NamedTuple):
    """What a strategy makes of a round.

    Attributes:
        uploads: Models that the clients send, of which the shared values count; None sends nothing.
        personal: Models that the clients keep; None leaves those they have.
    """

    uploads: Models | None = None
    personal: Models | None = None


class Cohort:
    """K clients in a round: what they received, what they have kept, and a way to train them.

    Args:
        training: What all local training has in common.
        clients: Numbers of the clients.
        data: Their data.
        round_number: Rounds before this one.
        received: The generic model as each client has it at the start of the round.
        personal: The models that they kept; what they received for those that kept none.
        class_counts: Examples of each class of each client, `(K, C)`.

    Attributes:
        figures: Means over the clients of what the stages reported, such as `generic/loss`.
        seconds: Time of each stage for each client.
        steps: Local steps of each stage for each client.
    """

    def __init__(
        self,
        training: LocalTraining,
        clients: Sequence[int],
        data: Sequence[ClientDataset],
        round_number: int,
        received: Models,
        personal: Models,
        class_counts: Tensor,
    ) -> None:
        self.training, self.clients, self.data = training, list(clients), list(data)
        self.round_number, self.received, self.personal = round_number, received, personal
        self.class_counts = class_counts
        self.figures: dict[str, Tensor] = {}
        self.seconds: dict[str, list[float]] = {}
        self.steps: dict[str, list[int]] = {}

    @property
    def layout(self) -> ModelLayout:
        """Layout of the models."""
        return self.training.layout

    @property
    def shared(self) -> Tensor:
        """Which of the D values are exchanged, `(D,)`."""
        return self.training.shared

    def combined(self) -> Models:
        """Each client's model: shared values as received, the rest as kept."""
        return Models(torch.where(self.shared, self.received.weights, self.personal.weights), self.received.buffers)

    def train(
        self,
        name: str,
        start: Models,
        epochs: int | None = None,
        penalties: Sequence[Penalty] = (),
        trained: Tensor | None = None,
        logit_offsets: Tensor | None = None,
        forward: Mapping[str, Any] | None = None,
    ) -> Models:
        """Runs one stage of local training.

        The order of the examples, and whatever is random, comes from the seed of the run, the client, the round and
        the name of the stage: it depends neither on other clients nor on what ran before.

        Args:
            name: Name of the stage.
            start: Models to start from.
            epochs: Passes over the data; None takes the run's.
            penalties: Terms added to the loss.
            trained: Which of the D values change, `(D,)`; None for all.
            logit_offsets: Added to the logits, `(K, C)`.
            forward: Keyword arguments of the network's `forward`.

        Returns:
            The trained models.
        """
        if not self.clients:
            return start
        run = self.training
        stage = LocalStage(
            epochs=run.epochs if epochs is None else epochs,
            batch_size=run.batch_size,
            optimizer=run.optimizer,
            per_sample_loss=run.per_sample_loss,
            penalties=penalties,
            trained=trained,
            logit_offsets=logit_offsets,
            forward=forward or {},
        )
        seeds = [stream_seed(run.seed, client, self.round_number, name) for client in self.clients]
        with torch.inference_mode(False), torch.enable_grad():
            result = run.backend.train(run.network, run.layout, stage, start, self.data, seeds)
        self.seconds[name], self.steps[name] = result.seconds, result.steps
        self.figures[f"{name}/loss"] = result.loss.mean()
        for penalty in penalties:
            if isinstance(penalty, SpectralPenalty):
                divergence, norm = penalty.measure(result.models.weights)
                self.figures[f"{name}/kl"] = divergence.mean()
                self.figures[f"{name}/weight"] = penalty.weight.mean()
                self.figures[f"{name}/grad_ratio"] = (norm / result.gradient_norm.clamp_min(1e-30)).mean()
        return result.models

    def work(self, transport: NetworkModel, payload: int, seconds_per_step: float | None) -> list[Work]:
        """What the clients did in this round, for the clock.

        Args:
            transport: Transfer times.
            payload: Bytes of an upload, and of a download; 0 where nothing is sent.
            seconds_per_step: Length of a local step; None takes what was measured.
        """
        work = []
        for k, client in enumerate(self.clients):
            stage = {
                name: self.seconds[name][k] if seconds_per_step is None else self.steps[name][k] * seconds_per_step
                for name in self.seconds
            }
            personal = stage.pop("personal", 0.0)
            up, down = transport.transfer(client, self.round_number, payload) if payload else (0.0, 0.0)
            work.append(Work(client, sum(stage.values()), personal, up, down))
        return work


def named_figures(figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The figures of a cohort under the names of the log: `train/*loss` and `spec/<stage>_*`.

    The first stage's loss is `train/loss`, that of others `train/<stage>_loss`.
    """
    named: dict[str, Tensor] = {}
    for key, value in figures.items():
        stage, quantity = key.split("/")
        if quantity != "loss":
            named[f"spec/{stage}_{quantity}"] = value
        else:
            named["train/loss" if "train/loss" not in named else f"train/{stage}_loss"] = value
    return named


def merged_figures(parts: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Means over all clients of figures that several ranks have, each with its number of clients."""
    merged: dict[str, float] = {}
    for name in dict.fromkeys(name for _, figures in parts for name in figures):
        known = [(count, figures[name]) for count, figures in parts if name in figures]
        merged[name] = sum(count * value for count, value in known) / sum(count for count, _ in known)
    return merged
