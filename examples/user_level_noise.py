"""Federated averaging that protects whole clients: `UserLevelNoise` on a federated loop of one's own.

Run it: `python examples/user_level_noise.py`.
"""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_methods.callbacks import UserLevelNoise
from lit_methods.differential_privacy import Identity

Clients = list[tuple[Tensor, Tensor]]


class Averaging:
    """Who takes part in a round, and the mean of what they send: the part that the callback stands in for."""

    def sample(self, clients: int, size: int, round_number: int, seed: int) -> list[int]:
        """Draws the clients of a round."""
        return torch.randperm(clients, generator=torch.Generator().manual_seed(seed + round_number))[:size].tolist()

    def combine(self, updates: Tensor, shares: Tensor, clients: Sequence[int]) -> Tensor:
        """The mean of updates `(K, D)`, by the shares `(K,)` of examples."""
        return shares @ updates


class FederatedRegression(LightningModule):
    """Each step is a round: the drawn clients train copies, the server steps along the combined update."""

    def __init__(self, per_round: int = 10) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.server, self.aggregation, self.per_round = nn.Linear(64, 10), Averaging(), per_round

    def training_step(self, clients: Clients, batch_idx: int) -> None:
        """One round."""
        drawn = self.aggregation.sample(len(clients), self.per_round, self.global_step, seed=0)
        updates = torch.stack([self.local_update(*clients[client]) for client in drawn])
        sizes = torch.tensor([float(len(clients[client][1])) for client in drawn])
        step = self.aggregation.combine(updates, sizes / sizes.sum(), drawn)
        optimizer = self.optimizers()
        parts = step.split([p.numel() for p in self.server.parameters()])
        for parameter, part in zip(self.server.parameters(), parts, strict=True):
            parameter.grad = -part.view_as(parameter)
        optimizer.step()

    def local_update(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """What two local steps move the model by, `(D,)`."""
        weight, bias = (p.detach().clone().requires_grad_() for p in self.server.parameters())
        local = torch.optim.SGD([weight, bias], lr=1.0)
        for _ in range(2):
            local.zero_grad()
            nn.functional.cross_entropy(nn.functional.linear(inputs, weight, bias), labels).backward()
            local.step()
        return torch.cat(
            [(new - old).detach().flatten() for new, old in zip((weight, bias), self.server.parameters(), strict=True)]
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The server's optimizer; rate 1 is federated averaging."""
        return torch.optim.SGD(self.server.parameters(), lr=1.0)


def main() -> None:
    """Trains on 100 clients without privacy, with independent noise, and with banded square root noise."""
    pixels, classes = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(classes)
    clients: Clients = list(zip(inputs[:1300].chunk(100), labels[:1300].chunk(100), strict=True))
    budget = {"epsilon": 8.0, "delta": 1e-3, "max_norm": 0.5}
    independent, banded = UserLevelNoise(factorization=Identity(), **budget), UserLevelNoise(**budget)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for name, callbacks in (
        ("without privacy", []),
        ("with independent noise", [independent]),
        ("with banded square root noise", [banded]),
    ):
        seed_everything(0, verbose=False)
        module = FederatedRegression()
        trainer = Trainer(max_epochs=40, accelerator="cpu", enable_model_summary=False, callbacks=callbacks, **quiet)
        trainer.fit(module, DataLoader([clients], batch_size=None))
        accuracy = (module.server(inputs[1300:]).argmax(1) == labels[1300:]).float().mean()
        print(f"accuracy {name}: {accuracy:.3f}")
    for name, callback in (("independent", independent), ("banded", banded)):
        error = callback.rounds.server.accounting.expected_error()
        print(f"expected error in the models, {name} noise: {error:.1f}")
    print(banded.rounds.server.guarantee())


if __name__ == "__main__":
    main()
