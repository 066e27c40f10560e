"""Networks and data small enough for a test, and noise predictors that are known exactly."""

from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn


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
