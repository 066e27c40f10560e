"""What learned weights look like: their histogram, and the examples with the least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import default_collate

from lit_methods.data_manipulation.guards import read_index
from lit_methods.logging import log_figure, log_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_weights(
    trainer: Trainer,
    weights: Tensor,
    dataset: Any,
    count: int,
    index_fn: Callable[[Any], Tensor] | None = None,
) -> None:
    """Sends a histogram, and the examples with the least weight as a table and as pictures, to the loggers.

    Args:
        trainer: On rank zero.
        weights: `(N,)`, mean 1, NaN where an example has none.
        dataset: The training set; if it cannot be read by position, examples are listed without labels and pictures.
        count: Number of examples listed.
        index_fn: Takes the index out of a batch, where batches have another form.
    """
    log_figure(trainer, "data_weighting/weights", weight_figure(weights[weights.isfinite()]))
    lowest = least(weights, count)
    if not lowest:
        return
    examples = examples_at(dataset, lowest, index_fn)
    rows = [(i, float(weights[i]), label_of(example)) for i, example in zip(lowest, examples, strict=True)]
    log_table(trainer, "data_weighting/least", ["index", "weight", "label"], rows)
    images = [image for example in examples if (image := image_of(example)) is not None]
    if len(images) == len(rows):
        captions = [f"{i}: {label}, {weight:.2f}" for i, weight, label in rows]
        log_figure(trainer, "data_weighting/pictures", picture_figure(images, captions))


def examples_at(dataset: Any, positions: Sequence[int], index_fn: Callable[[Any], Tensor] | None) -> list[Any]:
    """Examples of a data set, or None for each, where one cannot be read or has another index than its position.

    So it is in a `Subset` of an `IndexedDataset`, whose examples carry their index in the whole set.
    """
    examples = []
    for i in positions:
        try:
            examples.append(dataset[i])
            index = read_index(default_collate(examples[-1:]), index_fn, i + 1, needed=index_fn is not None)
        except (IndexError, KeyError, NotImplementedError, TypeError, ValueError):
            return [None] * len(positions)
        if index is not None and int(index[0]) != i:
            return [None] * len(positions)
    return examples


def weight_figure(weights: Tensor) -> Figure:
    """Histogram of weights `(N,)` of mean 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(weights.tolist(), bins=50)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="weight (mean 1)", ylabel="examples", yscale="log", title=f"Weights of {len(weights)} examples")
    return figure


def picture_figure(pictures: Sequence[Tensor], captions: Sequence[str]) -> Figure:
    """Images `(C, H, W)` in rows of eight, each under its caption; one channel is grey, three are RGB."""
    from matplotlib.figure import Figure

    rows = -(-len(pictures) // 8)
    figure = Figure(figsize=(9, 1.4 * rows + 0.3), layout="constrained")
    figure.suptitle("Examples with the least weight (position: given label, weight)", fontsize=9)
    for axes in figure.subplots(rows, 8, squeeze=False).flat:
        axes.set_axis_off()
    for axes, picture, caption in zip(figure.axes, pictures, captions, strict=False):
        values = picture.detach().float().cpu()
        values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-6)
        axes.imshow(values.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray")
        axes.set_title(caption, fontsize=7)
    return figure


def image_of(example: Any) -> Tensor | None:
    """The image `(1 or 3, H, W)` of a data set's example, if it has one: first of a tuple, any value of a dict."""
    values = example.values() if isinstance(example, Mapping) else example[:1] if isinstance(example, tuple) else ()
    images = (value for value in values if isinstance(value, Tensor) and value.ndim == 3 and len(value) in (1, 3))
    return next(images, None)


def label_of(example: Any) -> str:
    """The label of a data set's example as text; empty where it has none."""
    found: Any = None
    if isinstance(example, tuple | list) and len(example) > 1:
        found = example[1]
    elif isinstance(example, Mapping):
        found = example.get("label", example.get("labels"))
    return "" if found is None else str(found.item() if isinstance(found, Tensor) and found.numel() == 1 else found)


def least(weights: Tensor, count: int) -> list[int]:
    """Positions of the smallest weights, ascending; examples without a weight (NaN) are left out."""
    known = torch.nan_to_num(weights, nan=torch.inf)
    order = known.argsort(stable=True)[:count]
    return [int(i) for i in order if torch.isfinite(known[i])]
