"""Slow references: triple loops, one score at a time."""

import math

import torch
from torch import Tensor

from lit_methods.image_text.functional import CaptionUnits


def unit_vector(words: Tensor, head: int, modifier: int, weight: float = 1.0) -> Tensor:
    return words[head] + weight * words[modifier] if modifier >= 0 else words[head]


def naive_scores(
    regions: Tensor, mask: Tensor | None, captions: CaptionUnits, words: Tensor, weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Both poolings `(I, T)`, pair by pair; captions without units as documented."""
    images, texts = len(regions), len(captions)
    t2i = torch.zeros(images, texts, dtype=regions.dtype)
    i2t = torch.full((images, texts), math.nan, dtype=regions.dtype)
    for i in range(images):
        real = [r for r in range(regions.shape[1]) if mask is None or mask[i, r]]
        for t in range(texts):
            units = captions.unit[captions.offsets[t] : captions.offsets[t + 1]].tolist()
            table = []
            for q in units:
                u = unit_vector(words, int(captions.head[q]), int(captions.modifier[q]), weight)
                table.append([float(u @ regions[i, r] / (u.norm() * regions[i, r].norm())) for r in real])
            if units:
                t2i[i, t] = sum(max(row) for row in table) / len(units)
                i2t[i, t] = sum(max(row[r] for row in table) for r in range(len(real))) / len(real)
    silent = captions.counts == 0
    i2t[:, silent] = i2t[:, ~silent].mean(dim=1, keepdim=True)
    return t2i, i2t


def scene(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, CaptionUnits, Tensor]:
    """Nine images of up to five regions, eleven captions (one silent), words; `(regions, mask, captions, words)`."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.rand(9, 5, 7, generator=generator, dtype=torch.float64) * 30
    mask = torch.rand(9, 5, generator=generator) < 0.7
    mask[:, 0] = True
    words = torch.rand(12, 7, generator=generator, dtype=torch.float64) * torch.arange(1, 13).unsqueeze(1)
    mentions = [
        [(int(torch.randint(12, (1,), generator=generator)), int(torch.randint(-1, 12, (1,), generator=generator)))
         for _ in range(n)]
        for n in (1, 2, 3, 4, 0, 2, 2, 5, 1, 1, 3)
    ]  # fmt: skip
    mentions[3][0] = mentions[1][0] = (3, -1)
    mentions[7][1] = mentions[7][0]
    return regions.to(dtype), mask, CaptionUnits.from_mentions(mentions), words.to(dtype)
