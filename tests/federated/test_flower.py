"""Flower's nodes and server do what one process does."""

import subprocess
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from lit_methods.federated import Ditto, FedAvg, FedProx, FedRep, FedRoD, LocalOnly, SpectralCoDistillation
from lit_methods.federated.flower import client_app, fit_on_flower
from lit_methods.federated.module import FederatedModule
from tests.federated.flower_toys import MemoryGrid, Toy, ToyData, normalized
from tests.federated.toys import fit, trainer, vector

pytestmark = pytest.mark.flower

SPECTRAL = Toy(SpectralCoDistillation, (("generic_weight", 2.0), ("personal_weight", 3.0)))


def run(toy: Toy, rounds: int = 4, grid: MemoryGrid | None = None) -> tuple[FederatedModule, MemoryGrid, Any]:
    grid = MemoryGrid(client_app(toy), len(toy.sizes)) if grid is None else grid
    running = trainer(rounds)
    module, data = toy({})
    fit_on_flower(running, module, data, grid, timeout=60.0)
    return module, grid, running.callback_metrics


def test_it() -> None:
    toy = SPECTRAL
    module, grid, log = run(toy)
    alone, data = toy({})
    expected = fit(alone, 4, data.clients).callback_metrics
    assert torch.equal(vector(module.network), vector(alone.network))
    for client in range(4):
        if client in alone.state.personal:
            assert torch.equal(
                torch.from_numpy(grid.state(client)["personal"]["values"].numpy())[0], alone.state.personal[client]
            )
    print(log)
    print(expected)
