"""Scenes of tinted handwritten digits with captions: images and texts to match, with nothing to download."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .image_text import RetrievalDataModule, Split
from .regions import ArrayRegions
from .retrieval_sets import RetrievalSet

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TINTS = {
    "red": (1.0, 0.1, 0.1),
    "green": (0.1, 0.9, 0.1),
    "blue": (0.15, 0.2, 1.0),
    "yellow": (1.0, 0.95, 0.1),
    "purple": (0.7, 0.1, 0.9),
    "cyan": (0.1, 0.9, 0.95),
    "orange": (1.0, 0.5, 0.05),
    "white": (1.0, 1.0, 1.0),
}
_COLOURS = tuple(TINTS)
_JOINS = ("next to", "beside", "near", "and")
_CELL, _GRID, _CROP = 20, 3, 8
_SPLITS = ("knowledge", "train", "validation", "test")


class _Scene(NamedTuple):
    picture: Tensor
    boxes: Tensor
    captions: list[str]


class DigitScenesDataModule(RetrievalDataModule):
    """Pictures of four to six digit scans in eight tints, each with five captions such as "a red seven near a two".

    The scans are scikit-learn's 1,797, shared out between the knowledge (half of them) and the three splits, so that
    no scan is seen twice. A region is a crop of 8x8 pixels; its 80 features are the intensity of each pixel and a
    histogram of colours. Three in ten of the knowledge's crops have a name of two words ("red seven"), the others
    the digit's name alone.

    Args:
        num_train: Training scenes; images come from one half of them and captions from the other.
        num_val: Validation scenes.
        num_test: Test scenes.
        num_knowledge: Labelled crops behind `knowledge_dataloader`.
        num_regions: Regions of an image: one for each digit, and boxes without one.
        shift: Haze over the scenes, thicker over some than over others, in [0, 1]; the knowledge's crops are clear.
        captions_per_image: Captions of a scene.
        batch_size: Images per batch and process; training takes four times as many captions.
        seed: Seed of everything that is drawn here.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        num_train: int = 800,
        num_val: int = 100,
        num_test: int = 200,
        num_knowledge: int = 4000,
        num_regions: int = 8,
        shift: float = 0.0,
        captions_per_image: int = 5,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size)
        sizes = {
            "num_train": num_train,
            "num_val": num_val,
            "num_test": num_test,
            "num_knowledge": num_knowledge,
            "captions_per_image": captions_per_image,
        }
        for name, size in sizes.items():
            if size < 1 + (name == "num_train"):
                raise ValueError(f"{name}={size} must be at least {1 + (name == 'num_train')}.")
        if not 6 <= num_regions <= _GRID**2:
            raise ValueError(f"num_regions={num_regions} must lie in 6 to {_GRID**2}, the cells of a picture.")
        if not 0 <= shift <= 1:
            raise ValueError(f"shift={shift} must lie in [0, 1].")
        self.sizes = {"train": num_train, "validation": num_val, "test": num_test}
        self.num_knowledge, self.num_regions, self.shift = num_knowledge, num_regions, shift
        self.captions_per_image, self.seed = captions_per_image, seed
        self._pictures: dict[Split, Tensor] = {}

    def read(self, split: Split) -> RetrievalSet:
        """Draws the scenes of a split."""
        generator = self._generator(split)
        scans, labels = _scans(split, self.seed)
        scenes = [
            _draw(scans, labels, self.num_regions, self.captions_per_image, generator) for _ in range(self.sizes[split])
        ]
        pictures = _hazy(torch.stack([scene.picture for scene in scenes]), self.shift, generator)
        boxes = torch.stack([scene.boxes for scene in scenes])
        features = _encode(_crops(pictures, boxes))
        self._pictures[split] = pictures
        captions = [caption for scene in scenes for caption in scene.captions]
        image = torch.arange(len(scenes)).repeat_interleave(self.captions_per_image)
        return RetrievalSet(ArrayRegions(features.numpy(), boxes.float()), captions, image)

    def knowledge_dataloader(self) -> Iterator[tuple[Tensor, list[str]]]:
        """Batches of named crops, features `(N, 80)` and names, drawn from scans that no scene shows."""
        generator = self._generator("knowledge")
        scans, labels = _scans("knowledge", self.seed)
        for start in range(0, self.num_knowledge, 500):
            count = min(500, self.num_knowledge - start)
            chosen = torch.randint(len(scans), (count,), generator=generator)
            tint = torch.randint(len(_COLOURS), (count,), generator=generator)
            crops = _tinted(scans[chosen], tint) + 0.05 * torch.rand(count, 1, _CROP, _CROP, generator=generator)
            both = torch.rand(count, generator=generator) < 0.3
            names = [
                f"{_COLOURS[t]} {DIGITS[d]}" if named else DIGITS[d]
                for t, d, named in zip(tint.tolist(), labels[chosen].tolist(), both.tolist(), strict=True)
            ]
            yield _encode(crops.clamp(max=1)), names

    def picture(self, split: Split, index: int) -> Tensor:
        """Picture `(3, 60, 60)` of an image, in [0, 1]; boxes are in its pixels."""
        return self._pictures[split][index]

    def _generator(self, part: str) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + _SPLITS.index(part))


def _scans(part: str, seed: int) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    start, end = {"knowledge": (0, 900), "train": (900, 1300), "validation": (1300, 1450), "test": (1450, 1797)}[part]
    chosen = order[start:end]
    pixels = torch.from_numpy(images).float().reshape(-1, 1, _CROP, _CROP) / 16
    return pixels[chosen], torch.from_numpy(labels).long()[chosen]


def _tinted(scans: Tensor, tint: Tensor) -> Tensor:
    return scans * torch.tensor(list(TINTS.values()))[tint][:, :, None, None]


def _draw(scans: Tensor, labels: Tensor, num_regions: int, num_captions: int, generator: torch.Generator) -> _Scene:
    def number(high: int, low: int = 0) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    count = number(7, 4)
    cells = torch.randperm(_GRID**2, generator=generator)[:num_regions].tolist()
    chosen = torch.randint(len(scans), (count,), generator=generator)
    tint = torch.randint(len(_COLOURS), (count,), generator=generator)
    picture = 0.08 * torch.rand(3, _CELL * _GRID, _CELL * _GRID, generator=generator)
    boxes = []
    for place, cell in enumerate(cells):
        size = number(_CELL + 1, 14)
        top = _CELL * (cell // _GRID) + number(_CELL - size + 1)
        left = _CELL * (cell % _GRID) + number(_CELL - size + 1)
        boxes.append([left, top, left + size, top + size])
        if place < count:
            digit = _tinted(scans[chosen[place : place + 1]], tint[place : place + 1])
            window = picture[:, top : top + size, left : left + size]
            torch.maximum(window, interpolate(digit, size=(size, size), mode="bilinear")[0], out=window)
    objects = [(_COLOURS[t], DIGITS[d]) for t, d in zip(tint.tolist(), labels[chosen].tolist(), strict=True)]
    captions = []
    for _ in range(num_captions):
        told = torch.randperm(count, generator=generator)[: number(4, 1)].tolist()
        phrases = [f"a {objects[i][0]} {objects[i][1]}" if number(5) else f"a {objects[i][1]}" for i in told]
        caption = phrases[0]
        for phrase in phrases[1:]:
            caption += f" {_JOINS[number(len(_JOINS))]} {phrase}"
        captions.append(caption)
    return _Scene(picture, torch.tensor(boxes), captions)


def _hazy(pictures: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    if shift == 0:
        return pictures
    haze = shift * (0.2 + 0.5 * torch.rand(len(pictures), 1, 1, 1, generator=generator))
    return pictures * (1 - haze) + haze * torch.tensor([0.9, 0.95, 1.0]).view(3, 1, 1)


def _crops(pictures: Tensor, boxes: Tensor) -> Tensor:
    crops = []
    for picture, own in zip(pictures, boxes.tolist(), strict=True):
        for left, top, right, bottom in own:
            window = picture[None, :, top:bottom, left:right]
            crops.append(interpolate(window, size=(_CROP, _CROP), mode="bilinear", antialias=True))
    return torch.cat(crops).view(*boxes.shape[:2], 3, _CROP, _CROP)


def _encode(crops: Tensor) -> Tensor:
    """Intensities of the pixels and a colour histogram weighted by them: `(..., 3, 8, 8)` to `(..., 80)`."""
    intensity = crops.amax(dim=-3)
    weight = intensity.square().flatten(-2)
    hue = (crops / intensity.unsqueeze(-3).clamp_min(1e-6)).flatten(-2).transpose(-1, -2)
    bins = (hue > 0.35).long() + (hue > 0.75).long()
    palette = (bins * torch.tensor([1, 3, 9])).sum(dim=-1)
    histogram = torch.zeros(*palette.shape[:-1], 27).scatter_add_(-1, palette, weight)
    kept = torch.tensor([2, 6, 18, 8, 20, 24, 5, 26, 7, 19, 21, 11, 25, 17, 23, 15])
    colour = histogram[..., kept] / histogram.sum(dim=-1, keepdim=True).clamp_min(1e-6)
    return torch.cat([intensity.flatten(-2), 3 * colour * (0.2 + intensity.mean(dim=(-2, -1)).unsqueeze(-1))], dim=-1)
