"""Predicted queries as pictures for the logger, where the datamodule has pictures."""

from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_methods.image_text.gallery import Found
from lit_methods.logging import log_figure


def show_queries(trainer: Trainer, batch: Any, found: Found, count: int) -> None:
    """Draws the first queries of a batch, if the datamodule has `picture(split, index)` and boxes to draw.

    Args:
        trainer: The trainer that predicts.
        batch: Captions.
        found: Their images.
        count: Queries to draw, at most.
    """
    from lit_methods.image_text.figures import Query, retrieval_figure

    datamodule = getattr(trainer, "datamodule", None)
    picture, sets = getattr(datamodule, "picture", None), getattr(datamodule, "sets", {})
    if picture is None or "test" not in sets or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set outside __init__
        return
    queries = []
    for row in range(min(count, len(batch["captions"]))):
        images = found.image[row].tolist()
        pictures = [picture("test", image) for image in images]
        if any(one is None for one in pictures):
            return
        boxes = sets["test"].regions.read(images).boxes
        evidence = found.evidence[row]
        chosen = torch.stack([boxes[k][evidence.region[:, k].cpu()] for k in range(len(images))], dim=1)
        truth = batch["image"][row] if "image" in batch else torch.tensor(-1)
        hits = found.image[row] == truth
        queries.append(Query(batch["captions"][row], evidence.units, pictures, chosen, found.score[row], hits))
    log_figure(trainer, "predict/retrieval", retrieval_figure(queries))
