"""A grid of what was found: the query, its best images, and the boxes that answered its words."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Query(NamedTuple):
    """One row of the grid.

    Attributes:
        caption: The text.
        units: Its w units in words.
        pictures: k pictures `(3, H, W)` in [0, 1], best first.
        boxes: Box of each unit in each picture `(w, k, 4)`: left, top, right, bottom in pixels.
        scores: `(k,)`.
        hits: Whether each picture is the one that the caption describes `(k,)`.
    """

    caption: str
    units: list[str]
    pictures: list[Tensor]
    boxes: Tensor
    scores: Tensor
    hits: Tensor


def retrieval_figure(queries: list[Query]) -> "Figure":
    """Draws queries as rows, and the images found as columns.

    Args:
        queries: At least one.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    columns = max(len(query.pictures) for query in queries)
    figure = Figure(figsize=(2.2 * columns, 2.8 * len(queries)), layout="constrained")
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]  # matplotlib's stubs know the base class only
    figure.suptitle(
        "each caption with the pictures found for it; a frame is the region that answered a word", fontsize=8
    )
    strips = figure.subfigures(len(queries), 1, squeeze=False)[:, 0]
    for query, strip in zip(queries, strips, strict=True):
        strip.suptitle(f"“{query.caption}”", x=0.01, ha="left", fontsize=10)
        for column, axis in enumerate(strip.subplots(1, columns, squeeze=False)[0]):
            axis.set_axis_off()
            if column < len(query.pictures):
                _draw(axis, query, column, colours)
    return figure


def _draw(axis: "Axes", query: Query, column: int, colours: Sequence[tuple[float, ...]]) -> None:
    from matplotlib.patches import Rectangle

    picture = torch.as_tensor(query.pictures[column]).clamp(0, 1)
    height, width = picture.shape[1:]
    axis.imshow(picture.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    mark, colour = ("hit", "tab:green") if bool(query.hits[column]) else ("miss", "tab:red")
    title = f"{column + 1}. {mark}, score {float(query.scores[column]):.3f}"
    axis.set_title(title, color=colour, fontsize=8)
    line, drawn = 0.075 * height, Counter[tuple[float, ...]]()
    for row, unit in enumerate(query.units):
        left, top, right, bottom = box = tuple(query.boxes[row, column].tolist())
        inset = (1 + 2 * drawn[box]) * 0.006 * width  # units that one region answers keep a frame and a line each
        tint, corner = colours[row % len(colours)], (left + inset, top + inset)
        extent = (right - left - 2 * inset, bottom - top - 2 * inset)
        axis.add_patch(Rectangle(corner, *extent, fill=False, edgecolor=tint, linewidth=1.5))
        label = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
        place = (left + 0.03 * width, top + 0.03 * height + line * drawn[box])
        axis.text(*place, unit, color=tint, fontsize=6.5, va="top", bbox=label)
        drawn[box] += 1
