"""Local training of all clients at once: their models stacked, each step one batched computation."""

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from lit_methods.federated.clients import ClientDataset
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.local_training import (
    LocalBackend,
    LocalResult,
    LocalStage,
    Models,
    batch_table,
    read_all,
)


class VectorizedBackend(LocalBackend):
    """Trains clients together under `torch.func.vmap`, with smaller batches padded and masked.

    Gives the loop's weights up to rounding. Clients with more steps go on when others have finished; nothing is
    computed for those that have.

    Args:
        chunk_size: Most clients in one stack, a bound on memory; None stacks all.

    Raises:
        ValueError: If `chunk_size` is below 1.
    """

    def __init__(self, chunk_size: int | None = None) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size} must be at least 1, or None for all clients in one stack.")
        self.chunk_size = chunk_size

    def train(
        self,
        network: nn.Module,
        layout: ModelLayout,
        stage: LocalStage,
        start: Models,
        data: Sequence[ClientDataset],
        seeds: Sequence[int],
    ) -> LocalResult:
        """See `LocalBackend.train`.

        Raises:
            ValueError: If the network or the data are random or the network mixes the examples of a batch.
        """
        if (reason := obstacle(network, data)) is not None:
            raise ValueError(f"VectorizedBackend can't train this: {reason} Use LoopBackend, or leave backend unset.")
        begin = time.perf_counter()
        steps = [stage.epochs * -(-len(client) // stage.batch_size) for client in data]
        by_length = sorted(range(len(data)), key=lambda k: -steps[k])
        weights = start.weights.clone()
        loss, norm = weights.new_zeros(len(data)), weights.new_zeros(len(data))
        for chunk in _chunks(by_length, self.chunk_size):
            _train_stack(network, layout, stage, chunk, weights, (loss, norm), data, seeds, steps)
        if weights.device.type == "cuda":
            torch.cuda.synchronize(weights.device)
        second = (time.perf_counter() - begin) / max(1, sum(steps))
        return LocalResult(Models(weights, start.buffers), loss, norm, steps, [second * count for count in steps])

    def predict(
        self, network: nn.Module, layout: ModelLayout, models: Models, inputs: Tensor, forward: Mapping[str, Any]
    ) -> Tensor:
        """See `LocalBackend.predict`."""
        with torch.no_grad():
            evaluated = copy.deepcopy(network).eval()

            def logits(weights: Tensor, buffers: Tensor) -> Tensor:
                state = layout.views(weights) | layout.buffer_views(buffers)
                return cast(Tensor, functional_call(evaluated, state, (inputs,), dict(forward)))

            return vmap(logits, chunk_size=self.chunk_size)(models.weights, models.buffers)


def obstacle(network: nn.Module, data: Sequence[ClientDataset]) -> str | None:
    """Says why clients of this network and data can't be trained in one stack; None if they can."""
    for name, layer in network.named_modules():
        if isinstance(layer, _NormBase):
            return f"layer {name!r} ({type(layer).__name__}) mixes the examples of a padded batch or keeps statistics."
        # Of attention and LSTM a number; a layer of transformers has a module of that name, which is looked at itself.
        rate = layer.p if isinstance(layer, _DropoutNd) else getattr(layer, "dropout", 0.0)
        if layer.training and isinstance(rate, int | float) and rate > 0:
            return f"layer {name!r} ({type(layer).__name__}) is random, and each client has its own random numbers."
    if any(client.random for client in data):
        return "the data are augmented at random, and each client has its own random numbers."
    return None


def _chunks(clients: list[int], size: int | None) -> list[list[int]]:
    size = size or len(clients)
    return [clients[i : i + size] for i in range(0, len(clients), size)]


def _train_stack(
    network: nn.Module,
    layout: ModelLayout,
    stage: LocalStage,
    chunk: list[int],
    weights: Tensor,
    records: tuple[Tensor, Tensor],
    data: Sequence[ClientDataset],
    seeds: Sequence[int],
    steps: Sequence[int],
) -> None:
    """Trains the clients of one stack, those with most steps first, and writes their rows of the results."""
    device, places = weights.device, torch.tensor(chunk, device=weights.device)
    examples, labels, where, shares = _gather(chunk, data, seeds, stage, weights)
    stack = weights[places]
    leaf = nn.Parameter(stack)
    optimizer = stage.optimizer([leaf])
    penalties = [penalty.take(places) for penalty in stage.penalties]
    frozen = None if stage.trained is None else (~stage.trained, stack[:, ~stage.trained])
    offsets = None if stage.logit_offsets is None else stage.logit_offsets[places].unsqueeze(1)
    totals, norms = stack.new_zeros(len(chunk)), stack.new_zeros(len(chunk))
    forward = dict(stage.forward)

    def logits_of(state: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return cast(Tensor, functional_call(network, state, (inputs,), forward))

    stacked = vmap(logits_of)
    remaining = [steps[k] for k in chunk]
    active = len(chunk)
    for step in range(max(remaining)):
        while remaining[active - 1] <= step:
            active -= 1
        if active < len(leaf):
            _narrow(leaf, optimizer, active)
        chosen = where[:active, step]
        inputs = examples[chosen.flatten()].view(*chosen.shape, *examples.shape[1:])
        point = leaf.detach().requires_grad_()
        logits = stacked(layout.views(point), inputs)
        if offsets is not None:
            logits = logits + offsets[:active]
        losses = stage.per_sample_loss(logits.flatten(0, 1), labels[chosen.flatten()])
        loss = (losses.view(active, -1) * shares[:active, step]).sum(dim=1)
        (gradient,) = torch.autograd.grad(loss.sum(), point)
        totals[:active] += loss.detach()
        ending = sum(count > step + 1 for count in remaining[:active])
        if ending < active:
            norms[ending:active] = gradient[ending:].norm(dim=1)
        for penalty in penalties:
            penalty.add_gradient_(gradient, leaf.detach(), slice(0, active), step)
        leaf.grad = gradient
        optimizer.step()
        if frozen is not None:
            leaf.data[:, frozen[0]] = frozen[1][:active]
    weights[places] = stack
    records[0][places] = totals / torch.tensor(remaining, device=device).clamp(min=1)
    records[1][places] = norms


def _narrow(leaf: nn.Parameter, optimizer: torch.optim.Optimizer, active: int) -> None:
    """Drops the finished clients at the end of the stack; what they reached stays in the stack's memory."""
    shape = leaf.shape
    leaf.data = leaf.data[:active]
    leaf.grad = None
    state = optimizer.state[leaf]
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == shape:
            state[name] = value[:active]


def _gather(
    chunk: list[int], data: Sequence[ClientDataset], seeds: Sequence[int], stage: LocalStage, like: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All examples of the stack, their labels, and for each client, step and place in the batch a position and share.

    Padding has the position of a real example and the share 0; the others share their batch equally.
    """
    read = [read_all(data[k], like.device) for k in chunk]
    width = min(stage.batch_size, max(len(data[k]) for k in chunk))
    tables, first = [], 0
    for k in chunk:
        table = batch_table(len(data[k]), width, stage, seeds[k])
        tables.append(torch.where(table < 0, -1, table + first))
        first += len(data[k])
    where = nn.utils.rnn.pad_sequence(tables, batch_first=True, padding_value=-1)
    real = (where >= 0).to(like.dtype)
    shares = real / real.sum(dim=2, keepdim=True).clamp(min=1)
    examples, labels = torch.cat([x for x, _ in read]), torch.cat([y for _, y in read])
    return examples, labels, where.clamp(min=0).to(like.device), shares.to(like.device)
