"""Pictures of transformations and weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def image_rows(rows: Sequence[tuple[str, Tensor]], low: float, high: float) -> "Figure":
    """A grid of images, one named row each.

    Args:
        rows: Name and images `(N, C, H, W)` of each row, all with the same `N`.
        low: Pixel value drawn black.
        high: Pixel value drawn white.
    """
    from matplotlib.figure import Figure  # here, because most imports of the room draw nothing

    count = len(rows[0][1])
    figure = Figure(figsize=(0.8 * count + 1, 0.85 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(grid, rows, strict=True):
        pixels = ((images.detach().float().cpu() - low) / (high - low)).clamp(0, 1).numpy()
        for axes, picture in zip(line, pixels, strict=True):
            grey = picture.shape[0] == 1
            axes.imshow(
                picture[0] if grey else picture.transpose(1, 2, 0), cmap="gray" if grey else None, vmin=0, vmax=1
            )
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def weight_histogram(weights: Tensor, known: Tensor) -> "Figure":
    """Histogram of the weights `(N,)` of images of known (1), unknown (0) and undisclosed (-1) classes `(N,)`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    bins = torch.linspace(0, max(float(weights.max()), 1e-6), 31).tolist()
    for value, name in ((1, "known classes"), (0, "unknown classes"), (-1, "truth not given")):
        chosen = weights[known == value]
        if len(chosen):
            axes.hist(chosen.tolist(), bins=bins, alpha=0.6, label=f"{name}, mean {float(chosen.mean()):.2f}")
    axes.set(xlabel="weight", ylabel="images", yscale="log")
    axes.legend()
    return figure
