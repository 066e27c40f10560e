"""Three rounds of a toy run by Flower's own simulation: `python -m tests.federated.flower_simulation FILE`."""

import sys

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from lit_methods.federated.flower import client_app, fit_on_flower
from tests.federated.flower_toys import SPECTRAL
from tests.federated.toys import trainer, vector


def main(grid: Grid, context: Context) -> None:
    running = trainer(3)
    module, data = SPECTRAL({})
    fit_on_flower(running, module, data, grid, timeout=120.0)
    personal = running.callback_metrics["val/personal_acc"].item()
    torch.save({"weights": vector(module.network), "personal_acc": personal}, sys.argv[1])


if __name__ == "__main__":
    server = ServerApp()
    server.main()(main)
    run_simulation(
        server,
        client_app(SPECTRAL),
        num_supernodes=4,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}},
    )
