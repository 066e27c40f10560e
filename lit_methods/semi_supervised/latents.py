"""Images to scaled latents and back; without an autoencoder the latents are the images."""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def encode(autoencoder: Any, images: Tensor) -> Tensor:
    """Scaled mean of the latent distribution, `(B, C, H, W)` to `(B, c, h, w)`.

    Args:
        autoencoder: diffusers' `AutoencoderKL` or None; its `scaling_factor` gives latents unit variance.
        images: Images in [-1, 1].
    """
    if autoencoder is None:
        return images
    latents: Tensor = autoencoder.encode(images).latent_dist.mode() * autoencoder.config.scaling_factor
    return latents


@torch.no_grad()
def decode(autoencoder: Any, latents: Tensor) -> Tensor:
    """Images of scaled latents, `(B, c, h, w)` to `(B, C, H, W)`."""
    if autoencoder is None:
        return latents
    images: Tensor = autoencoder.decode(latents / autoencoder.config.scaling_factor).sample
    return images
