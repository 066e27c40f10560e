"""Captions as people have them on disk, with an explicit image for each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor

from .errors import DatasetNotFoundError


class CaptionFile(NamedTuple):
    """Captions of one split.

    Attributes:
        captions: The texts.
        image: Position of each caption's image among the split's images `(T,)`.
        names: For each image of the split, every name that its regions may go by; empty where none is told.
        rows: Number of each image among all of the file; empty where none is told.
        num_all: Images of all splits, 0 where it is not told.
    """

    captions: list[str]
    image: Tensor
    names: Sequence[Sequence[str]] = ()
    rows: Sequence[int] = ()
    num_all: int = 0


def read_lines(path: str | Path, captions_per_image: int) -> CaptionFile:
    """Reads one caption per line; caption j belongs to image `j // captions_per_image`.

    Raises:
        DatasetNotFoundError: If there is no such file.
        ValueError: If the number of lines is no multiple of `captions_per_image`.
    """
    captions = [line.strip() for line in _text(Path(path)).splitlines()]
    if not captions or len(captions) % captions_per_image:
        raise ValueError(f"{path} has {len(captions)} lines, no multiple of captions_per_image={captions_per_image}.")
    return CaptionFile(captions, torch.arange(len(captions)) // captions_per_image)


def read_karpathy(path: str | Path, split: str, captions_per_image: int | None) -> CaptionFile:
    """Reads one split of Karpathy's JSON; "train" takes MSCOCO's "restval" too.

    Args:
        path: Such as `dataset_flickr30k.json`.
        split: "train", "val" or "test".
        captions_per_image: The first so many of each image, as the protocols say; None takes all.

    Raises:
        DatasetNotFoundError: If there is no such file.
        ValueError: If the file is cut short, has no such split, or an image has no caption.
    """
    path = Path(path)
    try:
        content: Any = json.loads(_text(path))
        images = content["images"]
        chosen = [(row, one) for row, one in enumerate(images) if one["split"] in (split, _also(split))]
        texts = [[sentence["raw"].strip() for sentence in one["sentences"]][:captions_per_image] for _, one in chosen]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is cut short or no Karpathy split file: {error!r}") from error
    if not chosen:
        raise ValueError(f"{path} has no image of split {split!r}, but {sorted({one['split'] for one in images})}.")
    counts = torch.tensor([len(own) for own in texts])
    names = [[Path(one["filename"]).stem, *(str(one[k]) for k in ("cocoid", "imgid") if k in one)] for _, one in chosen]
    if (counts == 0).any():
        raise ValueError(f"{path}: image {names[int((counts == 0).nonzero()[0])][0]} has no caption.")
    image = torch.arange(len(chosen)).repeat_interleave(counts)
    return CaptionFile(
        captions=[text for own in texts for text in own],
        image=image,
        names=names,
        rows=[row for row, _ in chosen],
        num_all=len(images),
    )


def _also(split: str) -> str:
    return "restval" if split == "train" else split


def _text(path: Path) -> str:
    if not path.is_file():
        raise DatasetNotFoundError(f"Captions {path.name}", [path.parent], "Pass data_dir= and captions=.")
    return path.read_text(encoding="utf-8")


class Annotation(NamedTuple):
    """What CLDR says of a character: its short name, such as "dog face", and keywords, such as "dog" and "pet"."""

    name: str
    keywords: Sequence[str]


def read_annotations(path: str | Path) -> dict[str, Annotation]:
    """Reads CLDR's annotations of single code points, lower-cased, in the order of the file.

    Args:
        path: Such as `common/annotations/en.xml`.

    Raises:
        DatasetNotFoundError: If there is no such file.
        ValueError: If it is cut short or has another layout.
    """
    try:
        root = ElementTree.fromstring(_text(Path(path)))  # noqa: S314  a file of the system
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is cut short or no XML: {error}") from error
    names: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for item in root.iter("annotation"):
        character, text = item.get("cp", ""), (item.text or "").lower()
        if item.get("type") == "tts":
            names[character] = text
        else:
            keywords[character] = [word.strip() for word in text.split("|")]
    if not names:
        raise ValueError(f"{path} names no character; pass a file of CLDR's common/annotations.")
    return {c: Annotation(name, keywords.get(c, [])) for c, name in names.items() if len(c) == 1}
