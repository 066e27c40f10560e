"""What learned weights look like: their histogram, and the examples with the least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_methods.logging import log_figure, log_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_weights(trainer: Trainer, weights: Tensor, dataset: Any, count: int) -> None:
    """Sends a histogram, and the examples with the least weight as a table and as pictures, to the loggers.

    Args:
        trainer: On rank zero.
        weights: `(N,)`, mean 1, NaN where an example has none.
        dataset: The training set; without `__getitem__` there is only the histogram.
        count: Number of examples listed.
    """
    log_figure(trainer, "data_weighting/weights", weight_figure(weights[weights.isfinite()]))
    lowest = least(weights, count)
    if not lowest or not hasattr(dataset, "__getitem__"):
        return
    examples = [dataset[i] for i in lowest]
    rows = [(i, float(weights[i]), label_of(example)) for i, example in zip(lowest, examples, strict=True)]
    log_table(trainer, "data_weighting/least", ["index", "weight", "label"], rows)
    images = [image for example in examples if (image := image_of(example)) is not None]
    if len(images) == len(rows):
        captions = [f"{i}: {label}, {weight:.2f}" for i, weight, label in rows]
        log_figure(trainer, "data_weighting/pictures", picture_figure(images, captions))


def weight_figure(weights: Tensor) -> Figure:
    """Histogram of weights `(N,)` of mean 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(weights.tolist(), bins=50)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="weight (mean 1)", ylabel="examples", yscale="log")
    return figure


def picture_figure(pictures: Sequence[Tensor], captions: Sequence[str]) -> Figure:
    """Images `(C, H, W)` in rows of eight, each under its caption; one channel is grey, three are RGB."""
    from matplotlib.figure import Figure

    rows = -(-len(pictures) // 8)
    figure = Figure(figsize=(9, 1.4 * rows), layout="constrained")
    for axes in figure.subplots(rows, 8, squeeze=False).flat:
        axes.set_axis_off()
    for axes, picture, caption in zip(figure.axes, pictures, captions, strict=False):
        values = picture.detach().float().cpu()
        values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-6)
        axes.imshow(values.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray")
        axes.set_title(caption, fontsize=7)
    return figure


def image_of(example: Any) -> Tensor | None:
    """The image `(1 or 3, H, W)` of a data set's example, if it has one."""
    first = example[0] if isinstance(example, tuple | list) else None
    if isinstance(first, Tensor) and first.ndim == 3 and len(first) in (1, 3):
        return first
    return None


def label_of(example: Any) -> str:
    """The label of a data set's example as text; empty where it has none."""
    found: Any = None
    if isinstance(example, tuple | list) and len(example) > 1:
        found = example[1]
    elif isinstance(example, dict):
        found = example.get("label", example.get("labels"))
    return "" if found is None else str(int(found) if isinstance(found, Tensor) and found.numel() == 1 else found)


def least(weights: Tensor, count: int) -> list[int]:
    """Positions of the smallest weights, ascending; examples without a weight (NaN) are left out."""
    known = torch.nan_to_num(weights, nan=torch.inf)
    order = known.argsort(stable=True)[:count]
    return [int(i) for i in order if torch.isfinite(known[i])]
