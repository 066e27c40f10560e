"""What server and nodes send each other: the shared part of a generic model, and figures."""

from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from lit_methods.federated import FederatedModule
from lit_methods.federated.cohort import Cohort
from lit_methods.federated.local_training import Models


def server_models(module: FederatedModule) -> tuple[Models, Tensor]:
    """The module's own model, `(1, D)`, and which of its values are exchanged, `(D,)`."""
    layout, network = module.layout, module.network
    models = Models(layout.read(network).unsqueeze(0), layout.read_buffers(network).unsqueeze(0))
    return models, layout.mask(module.strategy.shared(layout)).to(models.weights.device)


def write_models(module: FederatedModule, models: Models) -> None:
    """Copies a model `(1, D)` into the module."""
    with torch.no_grad():
        for name, values in module.layout.views(models.weights[0]).items():
            module.network.get_parameter(name).copy_(values)
    module.layout.write_buffers(module.network, models.buffers[0])


def broadcast(models: Models, shared: Tensor, sends_buffers: bool, round_number: int) -> RecordDict:
    """What clients are sent: the shared part of the server's model, and the round."""
    return RecordDict({"generic": pack(models, shared, sends_buffers), "round": ConfigRecord({"number": round_number})})


def pack(models: Models, shared: Tensor, sends_buffers: bool) -> ArrayRecord:
    """The shared values of the first model, and its buffers if those are exchanged."""
    parts = {"weights": models.weights[0, shared]}
    if sends_buffers and models.buffers.numel():
        parts["buffers"] = models.buffers[0]
    return ArrayRecord({name: Array(part.cpu().numpy()) for name, part in parts.items()})


def unpack(record: ArrayRecord, model: Models, shared: Tensor) -> Models:
    """A model `(1, D)` with the values that another one packed."""
    parts = {name: torch.from_numpy(array.numpy()).to(shared.device) for name, array in record.items()}
    if len(parts["weights"]) != int(shared.sum()):
        raise ValueError(
            f"A model of {len(parts['weights'])} exchanged values came, but the network here has {int(shared.sum())}; "
            "`build` must make the same network and strategy everywhere."
        )
    weights = model.weights.clone()
    weights[0, shared] = parts["weights"].to(weights)
    return Models(weights, parts["buffers"].unsqueeze(0) if "buffers" in parts else model.buffers)


def record(values: Tensor) -> ArrayRecord:
    """A vector, to be kept in a node's state."""
    return ArrayRecord({"values": Array(values.cpu().numpy())})


def report(cohort: Cohort) -> MetricRecord:
    """Figures, seconds and steps of the stages of one client."""
    values: dict[str, Any] = {f"figures:{name}": float(value) for name, value in cohort.figures.items()}
    for kind, stages in (("seconds", cohort.seconds), ("steps", cohort.steps)):
        values |= {f"{kind}:{name}": of_clients[0] for name, of_clients in stages.items()}
    return MetricRecord(values)


def merge_reports(cohort: Cohort, reports: Sequence[MetricRecord]) -> None:
    """Writes what each client reported into a cohort of them: means of figures, seconds and steps one by one."""
    for key in reports[0]:
        kind, name = key.split(":")
        values = [report[key] for report in reports]
        if kind == "figures":
            cohort.figures[name] = torch.tensor(values).mean()
        else:
            getattr(cohort, kind)[name] = values
