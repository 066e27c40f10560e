"""Tumours told apart from private records: `BandedSquareRootNoise` in a project of its own.

Run it: `python examples/banded_square_root_noise.py`.
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lit_methods.callbacks import BandedSquareRootNoise


class TumourClassifier(LightningModule):
    """Logistic regression; it knows nothing of privacy."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(30, 2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Mean cross entropy."""
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy."""
        self.log("test/acc", (self.layer(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum, which the callback reads to shape the noise."""
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


def train(train_set: Dataset, test_set: Dataset, *callbacks: BandedSquareRootNoise) -> float:
    """Trains anew and returns the test accuracy."""
    seed_everything(0, verbose=False)
    module = TumourClassifier()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=20, accelerator="cpu", enable_model_summary=False, callbacks=list(callbacks), **quiet)
    trainer.fit(module, DataLoader(train_set, batch_size=46, shuffle=True))
    return trainer.test(module, DataLoader(test_set, batch_size=109), verbose=False)[0]["test/acc"]


def main() -> None:
    """Trains without privacy, with DP-SGD's noise and with banded square root noise at the same budget."""
    inputs, labels = load_breast_cancer(return_X_y=True)
    inputs = torch.tensor(inputs, dtype=torch.float32)
    scale = (
        inputs[460:].median(0).values
    )  # of the held-out records: statistics of private ones would leave without noise
    data = TensorDataset((inputs / scale).log1p() - 0.7, torch.tensor(labels))
    sets = Subset(data, range(460)), Subset(data, range(460, len(data)))
    budget = {"epsilon": 1.0, "delta": 1e-4, "max_grad_norm": 0.5}

    independent = BandedSquareRootNoise(bandwidth=1, **budget)
    banded = BandedSquareRootNoise(**budget)
    print(f"accuracy without privacy: {train(*sets):.3f}")
    print(f"accuracy with independent noise: {train(*sets, independent):.3f}")
    print(f"accuracy with banded square root noise: {train(*sets, banded):.3f}")
    for name, callback in (("independent", independent), ("banded", banded)):
        print(f"expected error in the models, {name} noise: {callback.plan.accounting.expected_error():.1f}")
    print(banded.plan.guarantee(banded.noise.step))


if __name__ == "__main__":
    main()
