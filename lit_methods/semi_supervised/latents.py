"""Images to scaled latents and back; without an autoencoder the latents are the images."""

from typing import Any

import torch
from torch import Tensor

from lit_methods.semi_supervised.cache import ExampleCache


def check_image_shape(unet: Any, autoencoder: Any, shape: torch.Size) -> None:
    """Refuses images of another size or mode than the model takes.

    Args:
        unet: A diffusers U-Net, whose `sample_size` is that of the latents; one without `config` takes any image.
        autoencoder: As for `encode`.
        shape: Shape of a batch of images, `(B, C, H, W)` if all is well.

    Raises:
        ValueError: If channels, height or width are others.
    """
    config = getattr(unet, "config", None)
    if config is None:
        return
    size, channels, factor = config.sample_size, config.in_channels, 1
    if autoencoder is not None:
        channels, factor = autoencoder.config.in_channels, 2 ** (len(autoencoder.config.block_out_channels) - 1)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    wanted = (channels, *(None if side is None else side * factor for side in (height, width)))
    if len(shape) != 4 or any(w is not None and w != s for w, s in zip(wanted, shape[1:], strict=True)):
        said = ", ".join("any" if number is None else str(number) for number in wanted)
        raise ValueError(
            f"images is {tuple(shape)}, but the model takes (B, {said}); resize or convert them as for training."
        )


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


class LatentCache:
    """Latents of the pool by position, one for each mirroring, in memory of the CPU: encoded once, not in each step."""

    def __init__(self) -> None:
        self._latents = ExampleCache()

    def encode(self, autoencoder: Any, images: Tensor, index: Tensor, flips: Tensor) -> Tensor:
        """Scaled latents `(B, c, h, w)`, from the table where they are there.

        Args:
            autoencoder: As for `encode`.
            images: Images, already mirrored, `(B, C, H, W)`.
            index: Their positions in the pool `(B,)`, on the CPU.
            flips: Whether each is mirrored `(B,)` bool, on the CPU.
        """
        rows = 2 * index + flips
        missing = self._latents.missing(rows)
        if bool(missing.any()):
            self._latents.put(rows[missing], encode(autoencoder, images[missing.to(images.device)]))
        return self._latents.get(rows).to(images.device, non_blocking=True)

    def clear(self) -> None:
        """Forgets all latents."""
        self._latents.clear()
