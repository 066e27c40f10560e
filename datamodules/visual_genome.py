"""Visual Genome's labelled boxes, read image by image from a file that need not fit into memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor

from .errors import DatasetNotFoundError

_CHUNK = 1 << 20


class LabelledImage(NamedTuple):
    """Boxes of one image and their names.

    Attributes:
        image_id: Visual Genome's number of the image.
        boxes: Left, top, right, bottom in pixels `(N, 4)`.
        names: First name of each box, as in the authors' recipe.
    """

    image_id: int
    boxes: Tensor
    names: list[str]


def read_objects(path: str | Path) -> Iterator[LabelledImage]:
    """Streams `objects.json`; images without a named box are left out.

    Args:
        path: The file: a JSON list of images with `image_id` and `objects` (`x`, `y`, `w`, `h`, `names`).

    Yields:
        One image after another.

    Raises:
        DatasetNotFoundError: If there is no such file.
        ValueError: If it is cut short or has another layout.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetNotFoundError(f"Visual Genome's {path.name}", [path.parent], "Pass the path of objects.json.")
    with path.open(encoding="utf-8") as file:
        for image in _items(file, path):
            try:
                named = [box for box in image["objects"] if box["names"]]
                corners = [[box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"]] for box in named]
                names = [box["names"][0] for box in named]
                found = LabelledImage(int(image["image_id"]), torch.tensor(corners, dtype=torch.float32), names)
            except (KeyError, TypeError) as error:
                raise ValueError(f"{path} is no objects.json of Visual Genome: {error!r}") from error
            if found.names:
                yield found


def coco_ids(path: str | Path) -> dict[int, int]:
    """MSCOCO's number of each image that has one, from `image_data.json`, to leave out a test set's images.

    Raises:
        DatasetNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetNotFoundError(f"Visual Genome's {path.name}", [path.parent], "Pass the path of image_data.json.")
    with path.open(encoding="utf-8") as file:
        return {int(one["image_id"]): int(one["coco_id"]) for one in _items(file, path) if one.get("coco_id")}


def _items(file: TextIO, path: Path) -> Iterator[Any]:
    """Items of a JSON list, decoded one by one."""
    decoder, text = json.JSONDecoder(), file.read(_CHUNK).lstrip()
    if not text.startswith("["):
        raise ValueError(f"{path} is no JSON list.")
    text = text[1:]
    while True:
        text = text.lstrip(" \t\r\n,")
        if text.startswith("]"):
            return
        try:
            item, end = decoder.raw_decode(text)
        except json.JSONDecodeError as error:
            more = file.read(max(_CHUNK, len(text)))
            if not more:
                raise ValueError(f"{path} is cut short: {error}") from error
            text += more
        else:
            yield item
            text = text[end:]
