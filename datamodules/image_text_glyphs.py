"""Pictures of characters, drawn from a colour font."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont
from torch import Tensor

_SIZE = 109  # the only size of Noto's bitmaps, which are 136 x 128 pixels
_CANVAS, _FRAME = 240, 144
_UNASSIGNED = "\U0010ffff"


def draw_glyphs(font: str | Path, characters: Sequence[str], side: int) -> dict[str, Tensor]:
    """Draws characters, each centred on a white square; those that the font lacks are left out.

    Args:
        font: A colour font (CBDT, or COLR of version 0) or any other that Pillow reads.
        characters: Single code points.
        side: Side of the pictures in pixels.

    Returns:
        Pictures `(3, side, side)`, uint8, by character.

    Raises:
        OSError: If the file is no font.
    """
    face = ImageFont.truetype(str(font), _SIZE)
    missing = _ink(face, _UNASSIGNED)
    found = {}
    for character in characters:
        glyph = _ink(face, character)
        if glyph is None or (missing is not None and glyph.tobytes() == missing.tobytes()):
            continue
        square = Image.new("RGB", (max(_FRAME, *glyph.size),) * 2, "white")
        square.paste(glyph, ((square.width - glyph.width) // 2, (square.height - glyph.height) // 2))
        pixels = np.array(square.resize((side, side), Image.Resampling.LANCZOS))
        found[character] = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return found


def _ink(face: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), "white")
    ImageDraw.Draw(canvas).text((40, 40), character, "black", face, embedded_color=True)
    box = ImageChops.difference(canvas, Image.new("RGB", canvas.size, "white")).getbbox()
    return None if box is None else canvas.crop(box)
