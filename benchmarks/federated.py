"""Federated rounds: their price by backend, that of the spectral terms, the wait-free curve, and accuracy.

`python -m benchmarks.federated [--quick] [--json FILE] [--only PART]`
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._harness import arguments, finish, machine, medians, table
from benchmarks._noisy_digits import METHODS, compare
from lit_methods.backbones import MLP, SmallCNN
from lit_methods.federated import (
    AutomaticBackend,
    Cohort,
    Ditto,
    LocalBackend,
    LoopBackend,
    Models,
    SpectralCoDistillation,
    Strategy,
    VectorizedBackend,
)
from lit_methods.federated.clock import ProtocolClock, Work
from lit_methods.federated.cohort import LocalTraining
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.local_training import per_sample

LR, MOMENTUM, BATCH, CLASSES = 0.05, 0.5, 10, 10


class Client:
    """Random examples of one client."""

    random = False

    def __init__(self, examples: int, shape: tuple[int, ...]) -> None:
        self.inputs = torch.randn(examples, *shape)
        self.labels = torch.randint(CLASSES, (examples,))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The examples at some positions."""
        chosen = torch.as_tensor(indices)
        return self.inputs[chosen], self.labels[chosen]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """The local optimizer of all sides."""
    return torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM)


def engine_round(
    strategy: Strategy, backend: LocalBackend, network: nn.Module, clients: Sequence[Client], epochs: int
) -> Callable[[], Any]:
    """A round of the engine, as a function."""
    network = strategy.wrap(network)
    layout = ModelLayout.of(network)
    training = LocalTraining(
        network, layout, torch.ones(layout.size, dtype=torch.bool), backend, 0, epochs, BATCH, sgd,
        per_sample(nn.CrossEntropyLoss()),
    )  # fmt: skip
    counts = torch.stack([torch.bincount(client.labels, minlength=CLASSES) for client in clients])
    weights = layout.read(network).expand(len(clients), -1)
    kept = Models(weights + 0.01 * torch.randn_like(weights), torch.zeros(len(clients), 0))

    def one_round() -> Any:
        received = Models(weights.clone(), kept.buffers)
        return strategy.round(Cohort(training, range(len(clients)), clients, 0, received, kept, counts))

    return one_round


class Plain(LightningModule):
    """What is trained where each client has a Trainer of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The local optimizer."""
        return sgd(self.network.parameters())


def trainer_round(network: nn.Module, clients: Sequence[Client], epochs: int) -> None:
    """Two stages for each client, each with a new Trainer."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for client in clients:
        loader = DataLoader(TensorDataset(client.inputs, client.labels), batch_size=BATCH, shuffle=True)
        for _ in ("generic", "personal"):
            network.load_state_dict(state)
            trainer = Trainer(
                accelerator="cpu", devices=1, max_epochs=epochs, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(Plain(network), loader)


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """An MLP on digits' size and a CNN on small grey images."""
    return {"MLP": (MLP(64, [64, 64], CLASSES), (1, 8, 8)), "CNN": (SmallCNN(1, CLASSES, (16, 32), 16), (1, 16, 16))}


def rounds(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Seconds of a round of two stages without terms, by who trains."""
    rows, headlines = [], {}
    epochs, repeats = (1, 3) if quick else (5, 5)
    for name, (network, shape) in networks().items():
        for count in (20,) if quick else (10, 20, 100):
            clients = [Client(20 + 2 * (i % 10), shape) for i in range(count)]
            sides: dict[str, Callable[[], Any]] = {
                side: engine_round(SpectralCoDistillation(0.0, 0.0), backend, network, clients, epochs)
                for side, backend in (
                    ("loop", LoopBackend()),
                    ("vectorized", VectorizedBackend()),
                    ("automatic", AutomaticBackend()),
                )
            }
            if count <= 20:
                sides["trainer"] = partial(trainer_round, network, clients, epochs)
            seconds = medians(sides, repeats)
            row: dict[str, Any] = {"network": name, "clients": count, "loop_ms": 1e3 * seconds["loop"]}
            row |= {side: seconds["loop"] / seconds[side] if side in seconds else "" for side in
                    ("vectorized", "automatic", "trainer")}  # fmt: skip
            rows.append(row)
            if name == "MLP" and count == 20:
                headlines["vectorized_vs_trainer_per_client"] = seconds["trainer"] / seconds["vectorized"]
                headlines["vectorized_vs_loop"] = seconds["loop"] / seconds["vectorized"]
            elif name == "CNN" and count == 20:
                headlines["auto_vs_loop_cnn"] = seconds["loop"] / seconds["automatic"]
    table(
        "(a) rounds per second, the loop = 1",
        [
            "network",
            "clients in a round",
            "loop, ms",
            "vectorized",
            "automatic",
            "one Trainer for each client and stage",
        ],
        [list(row.values()) for row in rows],
    )
    return headlines, rows


def spectral_terms(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Seconds of a round with both spectral terms over one of Ditto, by the loop."""
    rows, headlines = [], {}
    for name, (network, shape) in networks().items():
        clients = [Client(30, shape) for _ in range(4)]
        strategies: dict[str, Strategy] = {
            "Ditto": Ditto(),
            "spectral": SpectralCoDistillation(),
            "spectral, each layer 1-D": SpectralCoDistillation(layout="per_layer_1d"),
            "spectral, fast lengths": SpectralCoDistillation(smooth=True),
            "spectral, every 4 steps": SpectralCoDistillation(every_k_steps=4),
        }
        seconds = medians(
            {s: engine_round(strategy, LoopBackend(), network, clients, 5) for s, strategy in strategies.items()},
            3 if quick else 11,
        )
        rows += [{"network": name, "side": s, "ratio": value / seconds["Ditto"]} for s, value in seconds.items()]
        if name == "CNN":
            headlines["spectral_overhead"] = seconds["spectral"] / seconds["Ditto"]
    table("(b) a round, Ditto = 1", ["network", "side", "time"], [list(row.values()) for row in rows])
    return headlines, rows


def wait_free(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Speed-up of the wait-free protocol by communication over personal training, from the simulated clock."""
    rows = []
    for ratio in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 16.0):
        row: dict[str, Any] = {"ratio": ratio}
        for generic in (0.0, 0.5, 1.0):
            clock = ProtocolClock()
            for _ in range(200):
                clock.advance([Work(i, generic, 1.0, ratio / 2, ratio / 2) for i in range(5)], 0.0)
            row[f"g = {generic}"] = clock.sequential / clock.wait_free
        rows.append(row)
    table(
        "(c) simulated speed-up of wait-free over compute-and-wait, p = 1, by c / p",
        ["c / p", "g = 0", "g = 0.5", "g = 1"],
        [list(row.values()) for row in rows],
    )
    return {}, rows


def accuracy(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Final accuracies of every method on noisy digits."""
    rows: list[dict[str, Any]] = []
    names = ["local only", "Ditto 0.1", "spectral 0.3 / 0.4"] if quick else list(METHODS)
    for p in (0.5,) if quick else (0.3, 0.5, 1.0):
        rows += compare(p, range(1 if quick else 4), 10 if quick else 40, names)
    figures = ("val/generic_acc", "val/generic_acc_local", "val/personal_acc", "spec/personal_kl")
    table(
        "(d) noisy digits, mean ± standard deviation over seeds",
        ["p", "method", "generic, global", "generic, local", "personal", "divergence"],
        [[row["p"], row["method"], *(_mean_and_spread(row.get(name)) for name in figures)] for row in rows],
    )
    return {}, rows


def _mean_and_spread(value: tuple[float, float] | None) -> str:
    return "" if value is None else f"{value[0]:.3f} ± {value[1]:.3f}"


def main() -> None:
    """Runs all parts, or those that `--only` names."""
    options = arguments(__doc__ or "")
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric.utilities.rank_zero").setLevel(logging.ERROR)
    torch.manual_seed(options.seed)
    print(f"{machine()}; seed {options.seed}")
    headlines: dict[str, float] = {}
    figures: dict[str, Any] = {}
    for part in (rounds, spectral_terms, wait_free, accuracy):
        if options.only is None or options.only in part.__name__:
            found, figures[part.__name__] = part(options.quick)
            headlines |= found
    finish(headlines, figures, options.json)


if __name__ == "__main__":
    main()
