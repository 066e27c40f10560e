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

    count, (channels, height, width) = len(rows[0][1]), rows[0][1].shape[1:]
    gap = max(1, width // 12)
    grid = torch.ones(len(rows) * (height + gap) - gap, count * (width + gap) - gap, channels)
    for line, (_, images) in enumerate(rows):
        pixels = ((images.detach().float().cpu() - low) / (high - low)).clamp(0, 1)
        for column, picture in enumerate(pixels):
            top, left = line * (height + gap), column * (width + gap)
            grid[top : top + height, left : left + width] = picture.movedim(0, -1)
    wide, names = 0.8 * count + 1, 0.9
    figure = Figure(figsize=(wide, 0.85 * len(rows)))
    axes = figure.add_axes((names / wide, 0.01, 1 - (names + 0.05) / wide, 0.98), anchor="W")
    grey = channels == 1  # one picture for all: an axes for each takes seconds where there are many classes
    axes.imshow((grid[..., 0] if grey else grid).numpy(), cmap="gray" if grey else None, vmin=0, vmax=1)
    centres = [line * (height + gap) + (height - 1) / 2 for line in range(len(rows))]
    axes.set(xticks=[], yticks=centres)
    axes.set_yticklabels([name for name, _ in rows], fontsize=8)
    axes.tick_params(length=0)
    axes.set_frame_on(False)
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
