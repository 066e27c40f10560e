"""A second opinion on an image-text matcher: `KnowledgeRerank` in a project of its own.

Run it: `python examples/knowledge_rerank.py`.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_methods.callbacks import KnowledgeRerank

COLOURS, SHAPES, SIZE = ("red", "green", "blue", "white", "black"), ("ball", "cube", "cone", "ring", "star"), 24
THINGS = [f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES)]
LOOKS = torch.randn(len(COLOURS) + len(SHAPES), SIZE, generator=torch.Generator().manual_seed(0))

SPLITS = {"train": 40, "validation": 100, "test": 100}


def look(thing: int, generator: torch.Generator) -> Tensor:
    """Feature `(D,)` of a box around a thing."""
    colour, shape = divmod(thing, len(SHAPES))
    return LOOKS[colour] + LOOKS[len(COLOURS) + shape] + 1.5 * torch.randn(SIZE, generator=generator)


class Shelves(LightningDataModule):
    """Pictures of three things as boxes, and a caption that names two of them; boxes with names beside."""

    def __init__(self) -> None:
        super().__init__()
        self.splits = {name: self.draw(count, seed) for seed, (name, count) in enumerate(SPLITS.items())}

    def draw(self, count: int, seed: int) -> tuple[Tensor, list[str]]:
        """Boxes `(I, R, D)` and captions."""
        generator = torch.Generator().manual_seed(seed)
        things = torch.stack([torch.randperm(len(THINGS), generator=generator)[:3] for _ in range(count)])
        boxes = torch.stack([torch.stack([look(int(one), generator) for one in row]) for row in things])
        return boxes, [f"a {THINGS[row[0]]} and a {THINGS[row[1]]}" for row in things.tolist()]

    def loaders(self, split: str) -> list[DataLoader]:
        """Captions and then images, as `KnowledgeRerank` reads them."""
        boxes, captions = self.splits[split]
        images = {"regions": boxes, "mask": torch.ones(boxes.shape[:2], dtype=torch.bool)}
        texts = {"captions": captions, "image": torch.arange(len(captions))}
        return [DataLoader([part], batch_size=None) for part in (texts, images)]

    def train_dataloader(self) -> DataLoader:
        """The few pairs that the matcher learns from."""
        return DataLoader([self.splits["train"]], batch_size=None)

    def val_dataloader(self) -> list[DataLoader]:
        """Where the weight of the knowledge is searched."""
        return self.loaders("validation")

    def test_dataloader(self) -> list[DataLoader]:
        """Where it is used."""
        return self.loaders("test")

    def knowledge_dataloader(self) -> Iterator[tuple[Tensor, list[str]]]:
        """Boxes with names, of pictures that have no caption."""
        generator = torch.Generator().manual_seed(9)
        for _ in range(20):
            yield torch.stack([look(thing, generator) for thing in range(len(THINGS))]), THINGS


def bag(captions: list[str]) -> Tensor:
    """Counts of words `(T, V)`."""
    return torch.tensor([[float(caption.split().count(word)) for word in (*COLOURS, *SHAPES)] for caption in captions])


class Matcher(LightningModule):
    """Two linear towers, taught by pairs of whole pictures and captions."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(SIZE, 16), nn.Linear(len(LOOKS), 16)
        self.seen: dict[str, Any] = {}

    def similarity(self, boxes: Tensor, captions: list[str]) -> Tensor:
        """Scores `(I, T)`."""
        return self.image(boxes.mean(1)) @ self.text(bag(captions)).T

    def training_step(self, batch: tuple[Tensor, list[str]], batch_idx: int) -> Tensor:
        """Contrastive loss."""
        scores = self.similarity(*batch)
        target = torch.arange(len(scores))
        return nn.functional.cross_entropy(scores, target) + nn.functional.cross_entropy(scores.T, target)

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keeps what comes, captions and then images."""
        self.seen |= batch

    test_step = validation_step

    def scores(self) -> Tensor:
        """Scores `(I, T)` of the set just evaluated, which the callback asks for by name."""
        return self.similarity(self.seen["regions"], self.seen["captions"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


def main() -> None:
    """Trains the matcher on pairs, searches the knowledge's weight on validation and re-ranks the test set."""
    seed_everything(0, verbose=False)
    module, data = Matcher(), Shelves()
    rerank = KnowledgeRerank(scores="scores", alpha=None, alphas=(0.0, 0.5, 1.0, 2.0, 4.0))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=60, accelerator="cpu", enable_model_summary=False, callbacks=[rerank],
                      num_sanity_val_steps=0, check_val_every_n_epoch=60, **quiet)  # fmt: skip
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    found = trainer.callback_metrics
    print(f"weight of the knowledge, captions to images: {rerank.alpha[0]:g}, images to captions: {rerank.alpha[1]:g}")
    print(f"rSum of the matcher alone: {found['test/base_rsum']:.1f}, re-ranked: {found['test/rerank_rsum']:.1f}")


if __name__ == "__main__":
    main()
