"""Fine-tuning that stays spectrally near its start: `SpectralDistillation` in a project of its own.

Run it: `python examples/spectral_distillation.py`.
"""

import copy

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_methods.callbacks import SpectralDistillation


class DigitClassifier(LightningModule):
    """A perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Mean cross entropy."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy."""
        self.log("test/acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trainer(epochs: int, *callbacks: SpectralDistillation) -> Trainer:
    """A quiet Trainer."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, callbacks=list(callbacks), **quiet)


def main() -> None:
    """Trains on upright digits and fine-tunes on 100 mirrored ones, with the term at weight 0 and above."""
    seed_everything(0, verbose=False)
    pixels, classes = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(classes)
    mirrored = inputs.view(-1, 8, 8).flip(2).flatten(1)
    pretrained = DigitClassifier()
    upright = TensorDataset(inputs[:1000], labels[:1000])
    trainer(10).fit(pretrained, DataLoader(upright, batch_size=50, shuffle=True))

    tuning = DataLoader(TensorDataset(mirrored[1000:1100], labels[1000:1100]), batch_size=10, shuffle=True)
    test = DataLoader(TensorDataset(mirrored[1100:], labels[1100:]), batch_size=700)
    for weight in (0.0, 3.0):
        module = copy.deepcopy(pretrained)
        run = trainer(10, SpectralDistillation(weight))
        seed_everything(0, verbose=False)
        run.fit(module, tuning)
        divergence = run.callback_metrics["spec/kl"].item()
        accuracy = run.test(module, test, verbose=False)[0]["test/acc"]
        print(f"weight {weight:g}: divergence from the start {divergence:.1e}, accuracy on mirrored {accuracy:.3f}")


if __name__ == "__main__":
    main()
