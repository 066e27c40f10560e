"""Wrong labels found while a model trains: `DataWeighting` in a project of its own.

Run it: `python examples/data_weighting.py`.
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import make_blobs
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_methods.callbacks import DataWeighting
from lit_methods.datamodules import IndexedDataset


class BlobClassifier(LightningModule):
    """A perceptron whose loss is a submodule; its training step is as it ever was."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        self.loss = nn.CrossEntropyLoss()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Mean loss of a batch, whose last entry, the position, it ignores."""
        return self.loss(self.net(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy."""
        self.log("test/acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main() -> None:
    """Trains on 400 points of which four in ten have a wrong label, with and without weights."""
    points, classes = make_blobs(1020, n_features=8, centers=4, cluster_std=5.0, random_state=0)
    inputs, labels = torch.tensor(points, dtype=torch.float32) / 10, torch.tensor(classes)
    wrong = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.4
    given = torch.where(wrong, (labels[:400] + 1) % 4, labels[:400])
    noisy = IndexedDataset(TensorDataset(inputs[:400], given))  # adds each example's position to the batch
    clean = TensorDataset(inputs[400:420], labels[400:420], torch.arange(20))  # batches of the same form
    test = DataLoader(TensorDataset(inputs[420:], labels[420:]), batch_size=600)

    weighting = DataWeighting(DataLoader(clean, batch_size=20), criterion="loss")
    for name, callbacks in (("plain training", []), ("learned weights", [weighting])):
        seed_everything(0, verbose=False)
        module = BlobClassifier()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(max_epochs=20, accelerator="cpu", enable_model_summary=False, callbacks=callbacks, **quiet)
        trainer.fit(module, DataLoader(noisy, batch_size=40, shuffle=True))
        print(f"accuracy of {name}: {trainer.test(module, test, verbose=False)[0]['test/acc']:.3f}")
    weights = weighting.weights()
    print(f"mean weight of wrong labels: {weights[wrong].mean():.2f}, of right ones: {weights[~wrong].mean():.2f}")
    suspects = weights.argsort()[: int(wrong.sum())]
    print(f"wrong among the {len(suspects)} examples of least weight: {wrong[suspects].float().mean():.2f}")


if __name__ == "__main__":
    main()
