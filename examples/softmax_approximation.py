"""A transformer that keeps less of its attention: `SoftmaxApproximation` in a project of its own.

Run it: `python examples/softmax_approximation.py`.
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lit_methods.callbacks import SoftmaxApproximation


class PatchTransformer(LightningModule):
    """Reads a digit in 16 patches of four pixels, with PyTorch's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, 32), nn.Parameter(0.1 * torch.randn(16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `(B, 10)` of pixels `(B, 64)`."""
        patches = pixels.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        return self.head(self.encoder(self.embed(patches) + self.place).mean(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Mean cross entropy."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy."""
        self.log("test/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def main() -> None:
    """Trains the same network with all of its softmax kept, and with four bits of each weight."""
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    train, test, _ = random_split(data, [768, 256, len(data) - 1024], torch.Generator().manual_seed(0))
    approximation = SoftmaxApproximation(codec="log4", report=False)
    for name, callbacks in (("whole softmax", []), ("log4", [approximation])):
        seed_everything(0, verbose=False)
        module = PatchTransformer()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(max_epochs=4, accelerator="cpu", enable_model_summary=False, callbacks=callbacks, **quiet)
        trainer.fit(module, DataLoader(train, batch_size=32, shuffle=True))
        found = trainer.test(module, DataLoader(test, batch_size=256), verbose=False)[0]["test/acc"]
        print(f"accuracy with {name}: {found:.3f}")
    coverage = approximation.coverage
    for row in coverage.rows.values():
        print(f"{row.module}: {row.before / 2**10:.1f} KiB kept without the callback, {row.after / 2**10:.1f} with it")
    print(f"memory of attention: {coverage.before / coverage.after:.1f} times less")


if __name__ == "__main__":
    main()
