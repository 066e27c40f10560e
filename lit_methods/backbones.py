"""Small networks of the papers that no dependency offers.

None of them changes an activation in place, and all but `WideResNet`, whose papers have BatchNorm, treat the examples
of a batch apart: per-sample gradient hooks, `torch.func` transforms and saved-tensor hooks apply.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1.")


def _flat_size(channels: int, image_size: int | tuple[int, int], halvings: int) -> int:
    """Features left of an image after `halvings` max-pools of stride 2."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) >> halvings < 1:
        raise ValueError(
            f"image_size={image_size} vanishes in {halvings} max-pools of 2; "
            f"it must be at least {2**halvings}, or take fewer stages."
        )
    return channels * (height >> halvings) * (width >> halvings)


class MLP(nn.Sequential):
    """Linear layers with ReLU between them on flattened inputs, `(B, ...) -> (B, out_features)`.

    Args:
        in_features: Number of values of one flattened example, 64 for an 8x8 grey image.
        hidden_features: Widths of the hidden layers; empty for a linear model.
        out_features: Width of the output, the number of classes for a classifier.

    Raises:
        ValueError: If a width is below 1.
    """

    def __init__(self, in_features: int, hidden_features: Sequence[int], out_features: int) -> None:
        widths = [in_features, *hidden_features]
        _check_positive(in_features=in_features, out_features=out_features)
        _check_positive(**{f"hidden_features[{i}]": width for i, width in enumerate(hidden_features)})
        layers: list[nn.Module] = [nn.Flatten()]
        for width, next_width in pairwise(widths):
            layers += [nn.Linear(width, next_width), nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-1], out_features))


class SmallCNN(nn.Sequential):
    """Stages of 3x3 convolution, ReLU and max-pool, then a linear layer; `(B, C, H, W) -> (B, num_classes)`.

    Args:
        in_channels: Channels of the image: 1 for grey, 3 for RGB.
        num_classes: Number of logits.
        widths: Channels of each stage; each stage halves height and width.
        image_size: Height and width of the image in pixels, or one number for both.
        norm_groups: Groups of a GroupNorm after each convolution; None for no normalisation.

    Raises:
        ValueError: If a size is below 1, the image is too small for the stages, or a width is no multiple of
            `norm_groups`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32),
        image_size: int | tuple[int, int] = 8,
        norm_groups: int | None = None,
    ) -> None:
        channels = [in_channels, *widths]
        _check_positive(in_channels=in_channels, num_classes=num_classes)
        _check_positive(**{f"widths[{i}]": width for i, width in enumerate(widths)})
        layers: list[nn.Module] = []
        for width, next_width in pairwise(channels):
            layers.append(nn.Conv2d(width, next_width, kernel_size=3, padding=1))
            if norm_groups is not None:
                layers.append(nn.GroupNorm(norm_groups, next_width))
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        flat = _flat_size(channels[-1], image_size, len(widths))
        super().__init__(*layers, nn.Flatten(), nn.Linear(flat, num_classes))


class ConvNet6(nn.Sequential):
    """CIFAR-10 network of the banded-square-root notebook, `(B, C, H, W) -> (B, num_classes)`.

    Six 3x3 convolutions (32, 32, 64, 64, 128, 128) with ReLU, a max-pool after each pair, one linear layer
    (2048 -> 10 for 32x32 images), no normalisation: 307,498 parameters. Source: the notebook published in
    2025 with the experiments of the BSR and BISR papers (Kalinin and Lampert).

    Args:
        in_channels: Channels of the image.
        num_classes: Number of logits.
        image_size: Height and width of the image in pixels, or one number for both; at least 8.

    Raises:
        ValueError: If a size is below 1 or the image is too small for three max-pools.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, image_size: int | tuple[int, int] = 32) -> None:
        _check_positive(in_channels=in_channels, num_classes=num_classes)
        layers: list[nn.Module] = []
        width = in_channels
        for next_width in (32, 64, 128):
            for channels in (width, next_width):
                layers += [nn.Conv2d(channels, next_width, kernel_size=3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            width = next_width
        super().__init__(*layers, nn.Flatten(), nn.Linear(_flat_size(width, image_size, 3), num_classes))


class WideResNet(nn.Module):
    """WRN-28-2 of the semi-supervised literature (Zagoruyko & Komodakis 2016), `(B, C, H, W) -> (B, num_classes)`.

    Three stages of pre-activation residual blocks, LeakyReLU at 0.1, BatchNorm at momentum 0.001, mean over the image.
    The first block of the network activates before it branches, the others on the residual branch alone. 1,467,610
    parameters for ten classes.

    Args:
        in_channels: Channels of the image.
        num_classes: Number of logits; None leaves the last layer out and gives features of size `64 * widen_factor`.
        depth: Number of layers, 6 n + 4.
        widen_factor: Factor of the widths 16, 32, 64.
        norm_groups: Groups of a GroupNorm in place of BatchNorm; None for BatchNorm.

    Raises:
        ValueError: If a size is below 1 or `depth` is not 6 n + 4.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int | None = 10,
        depth: int = 28,
        widen_factor: int = 2,
        norm_groups: int | None = None,
    ) -> None:
        super().__init__()
        _check_positive(in_channels=in_channels, widen_factor=widen_factor)
        _check_positive(num_classes=1 if num_classes is None else num_classes)
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth={depth} must be 10, 16, 22, 28 or another 6 n + 4.")
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        width = 16
        for stage, next_width in enumerate(widen_factor * base for base in (16, 32, 64)):
            for i in range((depth - 4) // 6):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(_WideBlock(width, next_width, stride, not blocks, norm_groups))
                width = next_width
        self.blocks = nn.Sequential(*blocks)
        self.norm = _norm(width, norm_groups)
        self.head = nn.Identity() if num_classes is None else nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
            elif isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes)`, or features without a last layer."""
        features = F.leaky_relu(self.norm(self.blocks(self.stem(images))), 0.1)
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class _WideBlock(nn.Module):
    def __init__(self, width: int, next_width: int, stride: int, first: bool, norm_groups: int | None) -> None:
        super().__init__()
        self.first = first
        self.norm1, self.norm2 = _norm(width, norm_groups), _norm(next_width, norm_groups)
        self.conv1 = nn.Conv2d(width, next_width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(next_width, next_width, 3, 1, 1, bias=False)
        same = width == next_width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(width, next_width, 1, stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        active = F.leaky_relu(self.norm1(inputs), 0.1)
        residual: Tensor = self.conv2(F.leaky_relu(self.norm2(self.conv1(active)), 0.1))
        passed: Tensor = self.shortcut(active if self.first else inputs)
        return residual + passed


def _norm(width: int, groups: int | None) -> nn.Module:
    return nn.BatchNorm2d(width, momentum=0.001) if groups is None else nn.GroupNorm(groups, width)
