"""Generated images as files, with a resume: `SyntheticImageWriter` in a project of its own.

Run it: `python examples/synthetic_image_writer.py`.
"""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lit_methods.callbacks import SyntheticImageWriter


class DigitBlender(LightningModule):
    """Turns an image halfway into one of another class; a diffusion model would stand here in earnest.

    Args:
        means: Mean image of each class `(C, 1, 8, 8)`.
        share: Part of the other class, in [0, 1].
    """

    def __init__(self, means: Tensor, share: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters("share")  # the writer refuses a folder of another share
        self.register_buffer("means", means)
        self.share, self.made = share, 0

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Images `(B, 1, 8, 8)`, their new classes and the positions of their sources."""
        images, index = batch
        label = index % len(self.means)
        self.made += len(index)
        return {"images": images.lerp(self.means[label], self.share), "label": label, "index": index}


def main() -> None:
    """Writes 60 images, the second time after a run that was given up halfway."""
    digits = load_digits()
    pictures = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    means = torch.stack([pictures[labels == label].mean(0) for label in range(3)])
    loader = DataLoader(TensorDataset(pictures[:60], torch.arange(60)), batch_size=10)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with TemporaryDirectory() as folder:
        for batches in (3, None):
            module = DigitBlender(means)
            writer = SyntheticImageWriter(folder, class_names=["zero", "one", "two"])
            Trainer(accelerator="cpu", limit_predict_batches=batches, callbacks=[writer], **quiet).predict(
                module, loader
            )
            written = len(list(Path(folder).glob("*/*.png")))
            print(f"{module.made} images made in this run, {written} files in the folder")
        with (Path(folder) / "metadata.csv").open() as file:
            rows = list(csv.DictReader(file))
        print(f"{len(rows)} rows in metadata.csv, the first: {rows[0]['file']} made from image {rows[0]['index']}")
        try:
            Trainer(accelerator="cpu", callbacks=[SyntheticImageWriter(folder)], **quiet).predict(
                DigitBlender(means, share=0.9), loader
            )
        except ValueError as error:
            print(f"refused: {str(error).replace(folder, 'the folder')}")


if __name__ == "__main__":
    main()
