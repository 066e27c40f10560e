"""A real overlap over a loop-back socket: the personal stage runs while the upload travels, and changes nothing."""

import threading

import torch
from torch import Tensor, nn

from benchmarks._overlap import Overlap, client_round
from lit_methods.federated import LoopBackend, Models, SpectralCoDistillation
from lit_methods.federated.cohort import Cohort, LocalTraining
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.local_training import per_sample
from tests.federated.toys import BATCH, CLASSES, EPOCHS, ToyClient, federation, local_sgd, network


def _round(wait_free: bool, uploaded: threading.Event, seen: list[bool]) -> Overlap:
    net, strategy = network().float(), SpectralCoDistillation(2.0, 3.0)
    layout = ModelLayout.of(net)
    client = ToyClient(federation().clients[1].inputs.float(), federation().clients[1].labels)
    shared = torch.ones(layout.size, dtype=torch.bool)
    loss = per_sample(nn.CrossEntropyLoss())
    training = LocalTraining(net, layout, shared, LoopBackend(), 0, EPOCHS, BATCH, local_sgd, loss)
    received = Models(layout.read(net).unsqueeze(0), torch.zeros(1, 0))
    counts = torch.bincount(client.labels, minlength=CLASSES).unsqueeze(0)
    cohort = Cohort(training, [1], [client], 0, received, received, counts)

    def personal_stage(upload: Tensor) -> Tensor:
        if wait_free:
            seen.append(uploaded.wait(timeout=60))  # the upload is at the server, and its answer is not yet due
        return strategy.personal_stage(cohort, Models(upload.unsqueeze(0), received.buffers)).weights

    def aggregate(upload: Tensor) -> Tensor:
        return 0.5 * upload

    class Answer(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            uploaded.set()
            return super().wait(timeout)

    return client_round(
        lambda: strategy.generic_stage(cohort).weights[0], personal_stage, aggregate, Answer(), wait_free
    )


def test_personal_stage_runs_while_the_upload_travels() -> None:
    seen: list[bool] = []
    overlapped = _round(True, threading.Event(), seen)
    waited = _round(False, threading.Event(), [])
    assert seen == [True]
    assert overlapped.events == ["generic stage done", "personal stage done", "broadcast arrived"]
    assert torch.equal(overlapped.personal, waited.personal)
    assert torch.equal(overlapped.broadcast, waited.broadcast)
