"""Weak and strong views of image batches: every image its own draw, whole batches at a time, on any device."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_methods.errors import check_rising


class WeakAugmentation(nn.Module):
    """Random mirroring and a random crop after reflection padding, image by image (FixMatch's weak view).

    Args:
        padding: Share of height and width that an image may move by; 0.125 is 4 of 32 pixels.
        horizontal_flip: Whether half of the images are mirrored; not for digits.

    Raises:
        ValueError: If `padding` is outside [0, 1).
    """

    def __init__(self, padding: float = 0.125, horizontal_flip: bool = True) -> None:
        super().__init__()
        if not 0 <= padding < 1:
            raise ValueError(f"padding={padding} must lie in [0, 1): the share of the image that it may move by.")
        self.padding, self.horizontal_flip = padding, horizontal_flip

    def forward(self, images: Tensor) -> Tensor:
        """Views `(B, C, H, W)` of images `(B, C, H, W)`."""
        count, _, height, width = images.shape
        margins = [round(self.padding * size) for size in (height, width)]
        padded = F.pad(images, (margins[1], margins[1], margins[0], margins[0]), mode="reflect")
        top, left = (torch.randint(2 * margin + 1, (count, 1), device=images.device) for margin in margins)
        rows = top + torch.arange(height, device=images.device)
        columns = left + torch.arange(width, device=images.device)
        if self.horizontal_flip:
            flips = torch.rand(count, 1, device=images.device) < 0.5
            columns = torch.where(flips, columns.flip(1), columns)
        which = torch.arange(count, device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class RandAugment(nn.Module):
    """A weak view, then `num_ops` random operations, then a grey square (RandAugment with CutOut; FixMatch's strong).

    Operations: identity, brightness, contrast, saturation, sharpness, posterize, solarize, autocontrast, equalize,
    rotation, and shear and translation along each axis. Each image draws its own operation and a strength uniform up
    to `magnitude`.

    Args:
        num_ops: Operations per image.
        magnitude: Greatest strength, in [0, 1]; 1 is FixMatch's: 30 degrees, shear and translation of 0.3, colour
            factors of 0.05 to 0.95.
        cutout: Side of the greatest square, as a share of the image; 0 for none.
        weak: The view to start from; None for `WeakAugmentation()`.
        value_range: Lower and upper end of the pixels.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: float = 1.0,
        cutout: float = 0.5,
        weak: nn.Module | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        if num_ops < 0:
            raise ValueError(f"num_ops={num_ops} must be at least 0.")
        for name, value in (("magnitude", magnitude), ("cutout", cutout)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie in [0, 1].")
        check_rising("value_range", value_range)
        self.num_ops, self.magnitude, self.cutout = num_ops, magnitude, cutout
        self.weak = WeakAugmentation() if weak is None else weak
        self.low, self.high = value_range

    def forward(self, images: Tensor) -> Tensor:
        """Views `(B, C, H, W)` of images `(B, C, H, W)`, within `value_range`."""
        views = ((self.weak(images) - self.low) / (self.high - self.low)).clamp(0, 1)
        for _ in range(self.num_ops):
            which = torch.randint(len(_OPERATIONS), (len(views),), device=views.device)
            strength = self.magnitude * torch.rand(len(views), 1, 1, 1, device=views.device)
            sign = torch.randint(2, strength.shape, device=views.device) * 2 - 1
            result = views
            for i, operation in enumerate(_OPERATIONS):
                result = torch.where((which == i).view(-1, 1, 1, 1), operation(views, strength, sign), result)
            views = result.clamp(0, 1)
        return _cut_out(views, self.cutout) * (self.high - self.low) + self.low


def _toward(start: Tensor, views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Blends with factor `1 + 0.9 sign strength`: 0.1 (towards `start`) to 1.9 (away from it)."""
    return start + (1 + 0.9 * sign * strength) * (views - start)


def _grey(views: Tensor) -> Tensor:
    if views.shape[1] == 1:
        return views
    weights = views.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (views * weights).sum(dim=1, keepdim=True).expand_as(views)


def _brightness(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _toward(torch.zeros_like(views), views, strength, sign)


def _contrast(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _toward(_grey(views).mean(dim=(1, 2, 3), keepdim=True), views, strength, sign)


def _saturation(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _toward(_grey(views), views, strength, sign)


def _sharpness(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    kernel = views.new_tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13
    channels = views.shape[1]
    padded = F.pad(views, (1, 1, 1, 1), mode="replicate")
    smooth = F.conv2d(padded, kernel.expand(channels, 1, 3, 3), groups=channels)
    return _toward(smooth, views, strength, sign)


def _posterize(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    levels = 2 ** (8 - 4 * strength).round()
    return (views * 255 * levels / 256).floor() * 256 / levels / 255


def _solarize(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return torch.where(views >= 1 - strength, 1 - views, views)


def _autocontrast(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    low, high = views.amin(dim=(2, 3), keepdim=True), views.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (views - low) / (high - low).clamp(min=1e-6), views)


def _equalize(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """The share of the image's pixels that are darker, by the histogram of 256 values."""
    values = (views * 255).round().long().flatten(2)
    counts = torch.zeros(*values.shape[:2], 256, device=views.device)
    counts.scatter_add_(2, values, torch.ones_like(values, dtype=counts.dtype))
    below = counts.cumsum(dim=2) - counts
    room = (values.shape[2] - counts.gather(2, values.amax(dim=2, keepdim=True))).clamp(min=1)
    return (below.gather(2, values) / room).view_as(views)


def _rotate(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    angle = (sign * strength).flatten() * math.pi / 6
    return _affine(views, [[angle.cos(), -angle.sin(), None], [angle.sin(), angle.cos(), None]])


def _shear_x(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _affine(views, [[None, (0.3 * sign * strength).flatten(), None], [None, None, None]])


def _shear_y(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _affine(views, [[None, None, None], [(0.3 * sign * strength).flatten(), None, None]])


def _translate_x(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _affine(views, [[None, None, (0.6 * sign * strength).flatten()], [None, None, None]])


def _translate_y(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _affine(views, [[None, None, None], [None, None, (0.6 * sign * strength).flatten()]])


def _affine(views: Tensor, entries: list[list[Tensor | None]]) -> Tensor:
    """Samples at a 2x3 matrix of coordinates in [-1, 1]; None is the identity's entry. Outside is mid-grey."""
    matrix = torch.eye(2, 3, device=views.device, dtype=views.dtype).repeat(len(views), 1, 1)
    for i, row in enumerate(entries):
        for j, entry in enumerate(row):
            if entry is not None:
                matrix[:, i, j] = entry
    grid = F.affine_grid(matrix, list(views.shape), align_corners=False)
    return F.grid_sample(views - 0.5, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + 0.5


def _cut_out(views: Tensor, share: float) -> Tensor:
    if share == 0:
        return views
    count, _, height, width = views.shape
    side = share * torch.rand(count, 1, 1, device=views.device)
    y, x = (torch.rand(count, 1, 1, device=views.device) for _ in range(2))
    rows = ((torch.arange(height, device=views.device) + 0.5) / height).view(1, -1, 1)
    columns = ((torch.arange(width, device=views.device) + 0.5) / width).view(1, 1, -1)
    inside = ((rows - y).abs() < side / 2) & ((columns - x).abs() < side / 2)
    return torch.where(inside[:, None], 0.5, views)


def _identity(views: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return views


_OPERATIONS: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    _identity,
    _brightness,
    _contrast,
    _saturation,
    _sharpness,
    _posterize,
    _solarize,
    _autocontrast,
    _equalize,
    _rotate,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
