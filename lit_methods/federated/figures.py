"""Pictures of a federation."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_CLIENTS = 60


def partition_figure(class_counts: Tensor) -> "Figure":
    """Draws who holds how many examples of which class, one bar for each client, in colours by class.

    Args:
        class_counts: Training examples of each class of each client, `(K, C)`; of many clients the first 60 are drawn.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    counts = class_counts[:_MOST_CLIENTS].cpu()
    figure = Figure(figsize=(8, 1.5 + 0.2 * len(counts)), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["turbo"]
    left = counts.new_zeros(len(counts))
    for label in range(counts.shape[1]):
        shade = colours(label / max(1, counts.shape[1] - 1))
        axes.barh(range(len(counts)), counts[:, label].tolist(), left=left.tolist(), color=shade, label=str(label))
        left = left + counts[:, label]
    axes.set(xlabel="training examples", ylabel="client", title=f"{len(class_counts)} clients, colours are classes")
    axes.invert_yaxis()
    if counts.shape[1] <= 20:
        axes.legend(ncols=1, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure
