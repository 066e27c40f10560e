"""Local training of one client after the other: any network, any data."""

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_methods.federated.clients import ClientDataset
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.local_training import (
    LocalBackend,
    LocalResult,
    LocalStage,
    Models,
    batch_order,
    batches_of,
    uncached_autocast,
)


class _Worker:
    """A copy of a network whose trainable parameters, and their gradients, are views of one vector each."""

    def __init__(self, network: nn.Module, layout: ModelLayout, like: Tensor) -> None:
        self.network, self.layout = copy.deepcopy(network), layout
        self.weights = nn.Parameter(torch.empty_like(like))
        self.gradient = torch.zeros_like(like)
        self.weights.grad = self.gradient
        parameters = dict(self.network.named_parameters())
        values, gradients = layout.views(self.weights.detach()), layout.views(self.gradient)
        for name in layout.names:
            parameters[name].data = values[name]
            parameters[name].grad = gradients[name]

    def load(self, weights: Tensor, buffers: Tensor) -> None:
        self.weights.data.copy_(weights)
        self.layout.write_buffers(self.network, buffers)


class LoopBackend(LocalBackend):
    """Trains the clients one after the other on one copy of the network."""

    def train(
        self,
        network: nn.Module,
        layout: ModelLayout,
        stage: LocalStage,
        start: Models,
        data: Sequence[ClientDataset],
        seeds: Sequence[int],
    ) -> LocalResult:
        """See `LocalBackend.train`."""
        worker = _Worker(network, layout, start.weights[0])
        models = Models(torch.empty_like(start.weights), torch.empty_like(start.buffers))
        losses, norms, steps, seconds = [], [], [], []
        for k, (client, seed) in enumerate(zip(data, seeds, strict=True)):
            begin = time.perf_counter()
            worker.load(start.weights[k], start.buffers[k])
            loss, norm, count = _train_one(worker, stage, k, client, seed)
            models.weights[k] = worker.weights.detach()
            models.buffers[k] = layout.read_buffers(worker.network)
            losses.append(loss)
            norms.append(norm)
            steps.append(count)
            _wait(start.weights.device)
            seconds.append(time.perf_counter() - begin)
        return LocalResult(models, torch.stack(losses), torch.stack(norms), steps, seconds)

    def predict(
        self, network: nn.Module, layout: ModelLayout, models: Models, inputs: Tensor, forward: Mapping[str, Any]
    ) -> Tensor:
        """See `LocalBackend.predict`."""
        with torch.no_grad():
            worker = _Worker(network, layout, models.weights[0])
            worker.network.eval()
            logits = []
            for weights, buffers in zip(models.weights, models.buffers, strict=True):
                worker.load(weights, buffers)
                with uncached_autocast(inputs.device):
                    logits.append(worker.network(inputs, **forward))
            return torch.stack(logits)


def _train_one(
    worker: _Worker, stage: LocalStage, k: int, data: ClientDataset, seed: int
) -> tuple[Tensor, Tensor, int]:
    device, rows = worker.weights.device, slice(0, 1)
    order = batch_order(len(data), stage, seed)
    optimizer = stage.optimizer([worker.weights])
    penalties = [penalty.take(torch.tensor([k], device=device)) for penalty in stage.penalties]
    weights, gradient = worker.weights.detach(), worker.gradient
    frozen = None if stage.trained is None else (~stage.trained, weights[~stage.trained])
    total, norm = weights.new_zeros(()), weights.new_zeros(())
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for step, (inputs, labels) in enumerate(batches_of(data, order, device)):
            gradient.zero_()
            with uncached_autocast(device):
                logits = worker.network(inputs, **stage.forward)
                if stage.logit_offsets is not None:
                    logits = logits + stage.logit_offsets[k]
                loss = stage.per_sample_loss(logits, labels).mean()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            total += loss.detach()
            if step == len(order) - 1:
                norm = gradient.norm()
            for penalty in penalties:
                penalty.add_gradient_(gradient.unsqueeze(0), weights.unsqueeze(0), rows, step)
            optimizer.step()
            if frozen is not None:
                weights[frozen[0]] = frozen[1]
    return total / max(1, len(order)), norm, len(order)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
