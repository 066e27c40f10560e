"""Features of given boxes: what knowledge and pictures are encoded with, by one and the same encoder."""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate


class RegionEncoder(Protocol):
    """Encodes any boxes of any pictures; the same for the knowledge's boxes and for detected ones."""

    def __call__(self, pictures: Tensor, boxes: Tensor) -> Tensor:
        """Features `(B, R, D)` of boxes `(B, R, 4)` (left, top, right, bottom in pixels) in pictures `(B, 3, H, W)`."""
        ...


class CropEncoder(nn.Module):
    """Runs a backbone on each box, cut out and resized.

    Args:
        backbone: Maps crops `(N, 3, size, size)` to features `(N, D)`, or to `(N, D, h, w)`, which are averaged.
        size: Side of the crops in pixels.
        batch_size: Crops per call of the backbone.

    Raises:
        ValueError: If an argument is below 1.
    """

    def __init__(self, backbone: nn.Module, size: int = 224, batch_size: int = 64) -> None:
        super().__init__()
        for name, value in (("size", size), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.backbone, self.size, self.batch_size = backbone, size, batch_size

    def extra_repr(self) -> str:
        """What changes features beside the backbone."""
        return f"size={self.size}"

    @torch.no_grad()
    def forward(self, pictures: Tensor, boxes: Tensor) -> Tensor:
        """Features `(B, R, D)` of boxes in pictures.

        Raises:
            ValueError: If a box has no area inside its picture.
        """
        crops = []
        for picture, own in zip(pictures, _inside(pictures, boxes), strict=True):
            for left, top, right, bottom in own.round().long().tolist():
                window = picture[None, :, top : max(bottom, top + 1), left : max(right, left + 1)]
                crops.append(interpolate(window, size=(self.size, self.size), mode="bilinear", antialias=True))
        parts = [self._features(part) for part in torch.split(torch.cat(crops), self.batch_size)]
        return torch.cat(parts).view(*boxes.shape[:2], -1)

    def _features(self, crops: Tensor) -> Tensor:
        found = cast(Tensor, self.backbone(crops))
        return found.mean(dim=(2, 3)) if found.ndim == 4 else found


class PooledEncoder(nn.Module):
    """Runs a backbone once per picture and averages its feature map under each box, by bilinear samples.

    Args:
        backbone: Maps pictures `(B, 3, H, W)` to a feature map `(B, D, h, w)`.
        samples: Samples along each side of a box.

    Raises:
        ValueError: If `samples` is below 1.
    """

    def __init__(self, backbone: nn.Module, samples: int = 7) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"samples={samples} must be at least 1.")
        self.backbone, self.samples = backbone, samples

    def extra_repr(self) -> str:
        """What changes features beside the backbone."""
        return f"samples={self.samples}"

    @torch.no_grad()
    def forward(self, pictures: Tensor, boxes: Tensor) -> Tensor:
        """Features `(B, R, D)` of boxes in pictures.

        Raises:
            ValueError: If a box has no area inside its picture, or the backbone gives no map.
        """
        features = cast(Tensor, self.backbone(pictures))
        if features.ndim != 4:
            raise ValueError(f"backbone gave {tuple(features.shape)}; PooledEncoder needs a feature map (B, D, h, w).")
        size = torch.tensor([pictures.shape[3], pictures.shape[2]], device=pictures.device)
        start, end = (_inside(pictures, boxes) / size.repeat(2)).split(2, dim=2)  # type: ignore[no-untyped-call]  # torch does not type it
        steps = (torch.arange(self.samples, device=pictures.device) + 0.5) / self.samples
        places = 2 * (start.unsqueeze(2) + steps.view(-1, 1) * (end - start).unsqueeze(2)) - 1
        columns, rows = places[..., 0], places[..., 1]
        grid = torch.stack(
            [
                columns.unsqueeze(2).expand(-1, -1, self.samples, -1),
                rows.unsqueeze(3).expand(-1, -1, -1, self.samples),
            ],
            dim=-1,
        )
        found = grid_sample(features, grid.flatten(1, 2).to(features), align_corners=False, padding_mode="border")
        return found.view(*found.shape[:2], boxes.shape[1], -1).mean(dim=3).transpose(1, 2)


def match_boxes(boxes: Tensor, queries: Tensor, threshold: float = 0.5) -> Tensor:
    """Detector query that fits each labelled box best, to take features from detectors that have their own boxes.

    Such features are made to tell classes and boxes; those of DETR and its kin do poorly here unless the detector was
    trained on Visual Genome (MASK, Table 11).

    Args:
        boxes: Labelled boxes `(N, 4)`: left, top, right, bottom.
        queries: The detector's boxes `(M, 4)`.
        threshold: Least intersection over union.

    Returns:
        Query of each box `(N,)`, -1 where none fits.
    """
    corner = torch.maximum(boxes[:, None, :2], queries[None, :, :2])
    extent = (torch.minimum(boxes[:, None, 2:], queries[None, :, 2:]) - corner).clamp(min=0)
    shared = extent.prod(dim=2)
    areas = [(x[:, 2:] - x[:, :2]).clamp(min=0).prod(dim=1) for x in (boxes, queries)]
    union = areas[0].unsqueeze(1) + areas[1] - shared
    best = (shared / union.clamp_min(torch.finfo(union.dtype).tiny)).max(dim=1)
    return torch.where(best.values >= threshold, best.indices, -1)


def _inside(pictures: Tensor, boxes: Tensor) -> Tensor:
    limit = torch.tensor([pictures.shape[3], pictures.shape[2]] * 2, device=boxes.device)
    cut = torch.minimum(boxes.float().clamp(min=0), limit)
    empty = ((cut[..., 2:] - cut[..., :2]) <= 0).any(dim=-1).nonzero()
    if len(empty):
        picture, box = empty[0].tolist()
        raise ValueError(f"Box {box} of picture {picture}, {boxes[picture, box].tolist()}, has no area inside it.")
    return cut
