"""A grid of what was found: the query, its best images, and the boxes that answered its words."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HIT, _MISS = "tab:green", "tab:red"


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
    from matplotlib.patches import Rectangle

    columns = max(len(query.pictures) for query in queries)
    figure = Figure(figsize=(2.2 * columns, 2.6 * len(queries)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.2)  # type: ignore[union-attr,call-arg]  # it is the constrained one
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]  # matplotlib's stubs know the base class only
    for query, axes in zip(queries, figure.subplots(len(queries), columns, squeeze=False), strict=True):
        for axis in axes:
            axis.set_axis_off()
        for column, picture in enumerate(query.pictures):
            axis = axes[column]
            axis.imshow(torch.as_tensor(picture).clamp(0, 1).permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            hit = bool(query.hits[column])
            mark = "hit" if hit else "miss"
            axis.set_title(f"{float(query.scores[column]):.3f} {mark}", color=_HIT if hit else _MISS, fontsize=8)
            for row, unit in enumerate(query.units):
                left, top, right, bottom = query.boxes[row, column].tolist()
                colour = colours[row % len(colours)]
                axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour))
                axis.text(left, top, unit, color=colour, fontsize=6, va="bottom")
        heading = axes[0].text(0, 1.2, query.caption, transform=axes[0].transAxes, fontsize=9, va="bottom")
        heading.set_in_layout(False)  # a long caption would push the columns apart
    return figure
