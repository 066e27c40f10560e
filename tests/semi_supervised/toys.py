"""Networks and data small enough for a test, and noise predictors that are known exactly."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from lit_methods.backbones import MLP
from lit_methods.semi_supervised import (
    DiscriminatorWeightedDiffusion,
    FrozenRelevance,
    SemiSupervisedClassifier,
    Strategy,
    Transformation,
)
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Parts


def tiny_unet(num_classes: int = 2, size: int = 4, channels: int = 1) -> UNet2DModel:
    """The same class-conditional U-Net in each call, a few thousand parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            add_attention=False,
            num_class_embeds=num_classes + 1,
        )


class GaussianPredictor(nn.Module):
    """Noise predictor of classes that are Gaussians: exact, so that only the solver errs.

    Args:
        means: Mean of each class; the last is the null class.
        std: Standard deviation of all.
    """

    def __init__(self, means: list[float], std: float) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_class_embeds=len(means), in_channels=1, sample_size=1)
        self.register_buffer("means", torch.tensor(means))
        self.register_buffer("alphas_cumprod", DDPMScheduler(beta_schedule="linear").alphas_cumprod)
        self.std = std

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> SimpleNamespace:
        alpha_bar = self.alphas_cumprod[timestep]
        mean = alpha_bar.sqrt() * self.means[class_labels].view(-1, 1, 1, 1)
        return SimpleNamespace(sample=(1 - alpha_bar).sqrt() * (x - mean) / (alpha_bar * self.std**2 + 1 - alpha_bar))


class OpenSetToy(LightningDataModule):
    """A data set of the room's batches in a fixed order, shared out under DDP; six batches per epoch.

    Args:
        images: Labelled images `(N, C, H, W)`.
        labels: Their classes `(N,)`.
        pool: Unlabelled images, a multiple of N.
        known: Truth of the pool; None for images below the mean to be known.
        batch_size: Labelled images per batch.
        synthetic: Whether the second part is `"synthetic": (images, labels)`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        pool: Tensor,
        known: Tensor | None = None,
        batch_size: int = 8,
        synthetic: bool = False,
    ) -> None:
        super().__init__()
        known = (pool.flatten(1).mean(1) < 0).long() if known is None else known
        index = torch.arange(len(pool))
        self.labeled = TensorDataset(images, labels)
        self.pool = TensorDataset(pool, index, known)
        self.second = TensorDataset(pool, index % 2) if synthetic else self.pool
        self.name = "synthetic" if synthetic else "unlabeled"
        self.batch_size = batch_size

    def _loader(self, dataset: TensorDataset, batch_size: int) -> DataLoader:
        if self.trainer is None or self.trainer.world_size == 1:
            return DataLoader(dataset, batch_size=batch_size)
        return DataLoader(dataset, batch_size=batch_size, sampler=DistributedSampler(dataset, shuffle=False))

    def train_dataloader(self) -> CombinedLoader:
        second = self.batch_size * len(self.second) // max(len(self.labeled), 1)
        loaders = {"labeled": self._loader(self.labeled, self.batch_size)}
        return CombinedLoader(loaders | {self.name: self._loader(self.second, max(second, 1))}, "max_size")

    def val_dataloader(self) -> list[DataLoader]:
        return [DataLoader(self.labeled, batch_size=8), DataLoader(self.pool, batch_size=24)]

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.labeled, batch_size=8)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.pool, batch_size=24)


def toy_images(count: int = 48, pool: int = 96, size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Labelled images of two classes (bright left, bright right), and a pool of which half is bright on top."""
    generator = torch.Generator().manual_seed(4)

    def draw(labels: Tensor) -> Tensor:
        images = 0.3 * torch.randn(len(labels), 1, size, size, generator=generator) - 0.5
        half = size // 2
        for image, label in zip(images, labels.tolist(), strict=True):
            region = (image[:, :, :half], image[:, :, half:], image[:, :half])[label]
            region += 1.0
        return images

    labels = torch.arange(count) % 2
    kinds = torch.tensor([0, 1, 2, 2])[torch.arange(pool) % 4]
    return draw(labels), labels, draw(kinds)


def toy_data(batch_size: int = 8, synthetic: bool = False, **changes: Tensor) -> OpenSetToy:
    """The toy as a datamodule; `changes` replaces `images`, `labels` or `pool`."""
    images, labels, pool = toy_images()
    known = (torch.arange(len(pool)) % 4 < 2).long()
    parts = {"images": images, "labels": labels, "pool": pool, "known": known} | changes
    parts["known"] = parts["known"][: len(parts["pool"])]
    return OpenSetToy(**parts, batch_size=batch_size, synthetic=synthetic)


def tiny_discriminator(size: int = 4) -> nn.Module:
    """The same small network of one logit in each call."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return MLP(size * size, [16], 1)


def tiny_diffusion(**arguments: object) -> DiscriminatorWeightedDiffusion:
    """A diffusion module with a frozen random discriminator and plain SGD."""
    settings: dict[str, object] = {
        "relevance": FrozenRelevance(tiny_discriminator(), prior=0.5),
        "transformation": Transformation(num_inference_steps=2),
        "pretrained": True,
        "optimizer": partial(torch.optim.SGD, lr=0.05),
    }
    return DiscriminatorWeightedDiffusion(tiny_unet(), 2, **(settings | arguments))


def tiny_backbone(features: int = 6) -> nn.Module:
    """The same small network of features in each call."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return MLP(16, [12], features)


def tiny_classifier(strategy: Strategy, **arguments: object) -> SemiSupervisedClassifier:
    """A classifier of the toy's two classes, the same in each call."""
    settings: dict[str, object] = {"optimizer": partial(torch.optim.SGD, lr=0.1)}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return SemiSupervisedClassifier(tiny_backbone(), 6, 2, strategy, **(settings | arguments))


def fit_diffusion(module: DiscriminatorWeightedDiffusion, folder: Path, **trainer: Any) -> Any:
    """The Trainer that has fitted the module to the toy for an epoch."""
    parts = Parts(module, [], toy_data())
    fitted = toy_trainer(parts, folder, **({"max_epochs": 1} | trainer))
    fitted.fit(module, datamodule=parts.data)
    return fitted
