"""Text to image among many images: an exact scan, and a faiss index of regions with exact scores of what it finds."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks._harness import table
from lit_methods.image_text.functional import CaptionUnits, UnitTable, match, score_chunks, t2i_scores

REGIONS, SIZE, WORDS, OBJECTS, NOISE = 36, 256, 2000, 6, 2.0
_BLOCK = 2000


def scenes(images: int, words: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Regions `(I, 36, 256)` in half precision, each near the word of one of six objects, and the objects `(I, 6)`."""
    objects = torch.randint(len(words), (images, OBJECTS), generator=generator)
    regions = torch.empty(images, REGIONS, SIZE, dtype=torch.float16)
    for start in range(0, images, _BLOCK):
        own = objects[start : start + _BLOCK]
        shown = own.gather(1, torch.randint(OBJECTS, (len(own), REGIONS), generator=generator))
        noise = NOISE * torch.randn(len(own), REGIONS, SIZE, generator=generator)
        regions[start : start + len(own)] = normalize(words[shown] + noise, dim=2)
    return regions, objects


def exact(regions: Tensor, unit_table: UnitTable) -> Tensor:
    """Scores `(T, I)`, read block by block."""
    parts = []
    for block in regions.split(_BLOCK):
        for chunk in score_chunks(block.float(), unit_table, with_i2t=False):
            parts.append(t2i_scores(chunk.maxima, unit_table.unit, unit_table.offsets))
    return torch.cat(parts, dim=1)


def shortlist(index: Any, unit_table: UnitTable, depth: int, kept: int, images: int) -> Tensor:
    """Images `(T, kept)` with the best means over units of what the index finds; what it misses counts as its worst."""
    found, region = (torch.from_numpy(part) for part in index.search(unit_table.directions.numpy(), depth))
    maxima = found.amin(dim=1, keepdim=True).expand(-1, images).clone()
    maxima.scatter_reduce_(1, region.clamp(min=0) // REGIONS, found, "amax")
    return t2i_scores(maxima, unit_table.unit, unit_table.offsets).topk(kept, dim=1).indices


def search_with(faiss: Any, images: int, queries: int) -> list[dict[str, Any]]:
    """Times and recalls of both; captions name three of an image's six objects."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(WORDS, SIZE, generator=generator)
    regions, objects = scenes(images, words, generator)
    asked = torch.randperm(images, generator=generator)[:queries]
    captions = CaptionUnits.from_mentions([[(int(word), -1) for word in row[:3]] for row in objects[asked]])
    unit_table = UnitTable.build(captions, words)
    seconds: dict[str, float] = {}

    def timed(name: str, start: float) -> None:
        seconds[name] = time.process_time() - start

    start = time.process_time()
    # Training product quantizers takes minutes of one core: small runs go without.
    kind, sample = ("PCA128,IVF1024,PQ64", 60_000) if images > 10_000 else ("PCA16,IVF64,Flat", 5_000)  # 64 bytes each
    index = faiss.index_factory(SIZE, kind, faiss.METRIC_INNER_PRODUCT)
    flat = regions.flatten(0, 1)
    index.train(flat[torch.randperm(len(flat), generator=generator)[:sample]].float().numpy())
    for block in flat.split(100_000):
        index.add(block.float().numpy())
    faiss.extract_index_ivf(index).nprobe = 16
    timed("build", start)
    start = time.process_time()
    order = exact(regions, unit_table).topk(10, dim=1).indices
    timed("exact", start)
    rows = [_row("exact scan", order, order, asked, seconds["exact"], len(flat) * SIZE * 2)]
    for depth, kept in ((2000, 200), (10_000, 1000)):
        start = time.process_time()
        short = shortlist(index, unit_table, min(depth, len(flat)), min(kept, images), images)
        best = []
        for t, candidates in enumerate(short):
            own = CaptionUnits.from_mentions([[(int(word), -1) for word in objects[asked[t], :3]]])
            scores, _ = match(regions[candidates].float(), UnitTable.build(own, words), pooling="t2i")
            best.append(candidates[scores[:, 0].topk(10).indices])
        took = time.process_time() - start
        rows.append(
            _row(f"top {depth} regions, best {kept} exact", torch.stack(best), order, asked, took, 64 * len(flat))
        )
    table(
        f"(d) {queries} captions, {images} images of {REGIONS} x {SIZE}; faiss {kind}, 16 lists read, "
        f"built in {seconds['build']:.0f} processor seconds",
        ["way", "R@1", "R@10", "of the exact top 10", "processor ms a caption", "MiB"],
        [[*row.values()] for row in rows],
    )
    return [*rows, {"build_seconds": seconds["build"], "images": images}]


def _row(way: str, order: Tensor, exact_order: Tensor, asked: Tensor, took: float, size: float) -> dict[str, Any]:
    hits = order == asked.unsqueeze(1)
    shared = (order.unsqueeze(2) == exact_order.unsqueeze(1)).any(dim=2).float().mean()
    return {
        "way": way,
        "R@1": 100 * float(hits[:, 0].float().mean()),
        "R@10": 100 * float(hits.any(dim=1).float().mean()),
        "shared": 100 * float(shared),
        "ms": 1000 * took / len(asked),
        "mib": size / 2**20,
    }
