"""Scoring images against captions by their regions and words: time and memory, beside a loop over captions.

`python -m benchmarks.image_text [--quick] [--json FILE] [--only PART]`
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks._harness import medians, run, table
from lit_methods.image_text.builder import KnowledgeBuilder
from lit_methods.image_text.functional import CaptionUnits, UnitTable, match, score_chunks, t2i_scores
from lit_methods.image_text.reranking import rerank

REGIONS, SIZE = 36, 2048


def captions_like(count: int, words: int, composites: int, generator: torch.Generator) -> CaptionUnits:
    """Captions of about four units each, drawn by Zipf's law from single words and noun-adjective pairs."""
    heads = torch.randint(words, (composites,), generator=generator)
    pairs = [(word, -1) for word in range(words)]
    pairs += list(zip(heads.tolist(), torch.randint(words, (composites,), generator=generator).tolist(), strict=True))
    weights = 1.0 / torch.arange(1, len(pairs) + 1)
    order = torch.randperm(len(pairs), generator=generator)
    lengths = torch.randint(2, 7, (count,), generator=generator).tolist()
    drawn = order[torch.multinomial(weights, sum(lengths), replacement=True, generator=generator)].tolist()
    mentions, start = [], 0
    for length in lengths:
        mentions.append([pairs[unit] for unit in drawn[start : start + length]])
        start += length
    for place, pair in enumerate(pairs):  # each unit occurs
        mentions[place % count].append(pair)
    return CaptionUnits.from_mentions(mentions)


class CaptionLoop:
    """What one writes first: for each caption, its units times all regions, then both poolings."""

    def __init__(self, regions: Tensor, captions: CaptionUnits, words: Tensor) -> None:
        self.regions = normalize(regions, dim=2)
        self.captions, self.units = captions, normalize(captions.vectors(words), dim=1)

    def scores(self, positions: range) -> tuple[Tensor, Tensor]:
        """Scores `(I, len(positions))` both ways."""
        flat, t2i, i2t = self.regions.flatten(0, 1), [], []
        for t in positions:
            rows = self.captions.unit[self.captions.offsets[t] : self.captions.offsets[t + 1]]
            cosines = (flat @ self.units[rows].T).view(*self.regions.shape[:2], -1)
            t2i.append(cosines.amax(dim=1).mean(dim=1))
            i2t.append(cosines.amax(dim=2).mean(dim=1))
        return torch.stack(t2i, dim=1), torch.stack(i2t, dim=1)


class PeakMemory:
    """The most resident memory above the start, in MiB, watched every few milliseconds."""

    def __enter__(self) -> PeakMemory:
        self._start = self.mib = _resident()
        self._running = True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()
        self.mib -= self._start

    def _watch(self) -> None:
        while self._running:
            self.mib = max(self.mib, _resident())
            time.sleep(0.003)


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def scorer(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """All scores both ways, against the loop over captions (a part of it, scaled up)."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"half of Flickr30k": (500, 5000, 2870, 2144)}
    if not quick:
        sizes = {"Flickr30k": (1000, 5000, 2870, 2144), "MSCOCO 5K": (5000, 25_000, 7000, 5000)}
    rows, headlines = [], {}
    for name, (images, texts, words, composites) in sizes.items():
        regions = torch.rand(images, REGIONS, SIZE, generator=generator)
        prototypes = torch.rand(words, SIZE, generator=generator)
        captions = captions_like(texts, words, composites, generator)
        unit_table = UnitTable.build(captions, prototypes)
        with torch.no_grad(), PeakMemory() as peak:
            start = time.perf_counter()
            if images <= 1000:
                match(regions, unit_table)
            else:
                for chunk in score_chunks(regions, unit_table):
                    t2i_scores(chunk.maxima, unit_table.unit, unit_table.offsets)
            seconds = time.perf_counter() - start
            used = peak
        part = range(0, 10 if quick else 40)
        if images <= 1000:
            loop = CaptionLoop(regions, captions, prototypes)
            product = partial(torch.mm, unit_table.directions, normalize(regions[:100], dim=2).flatten(0, 1).T)
            sides: dict[str, Callable[[], Any]] = {
                "ours": partial(match, regions, unit_table),
                "loop": partial(loop.scores, part),
                "product": product,
            }
            found = medians(sides, 1 if quick else 3, warm_up=0 if quick else 1)
            seconds, product_share = found["ours"], found["product"] * images / 100 / found["ours"]
            ratio = found["loop"] * texts / len(part) / found["ours"]
            headlines["scorer_speedup_vs_loop"] = ratio
        else:
            ratio = product_share = float("nan")
        headlines["scorer_peak_mib"] = max(headlines.get("scorer_peak_mib", 0.0), used.mib)
        rows.append({"size": name, "s": seconds, "ratio": ratio, "mib": used.mib, "share": product_share})
    table(
        "(a) all scores both ways: the loop over captions (a part, scaled up) over ours, and our peak memory",
        ["size", "our seconds", "loop over ours", "peak MiB above the data", "matrix product's share"],
        [[row[key] for key in ("size", "s", "ratio", "mib", "share")] for row in rows],
    )
    return headlines, rows


def reranking(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Sorting the top 15 of 1,000 images anew for 5,000 captions, scores at hand."""
    base, other = torch.randn(5000, 1000), torch.randn(5000, 1000)
    seconds = medians({"ours": partial(rerank, base, other, 15, 0.15, "zscore")}, 3 if quick else 9)["ours"]
    table("(b) re-ranking the top 15 of 5,000 queries", ["seconds"], [[seconds]])
    return {"rerank_5000_seconds": seconds}, [{"seconds": seconds}]


def building(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Knowledge from regions in memory: regions a second, against adding them one by one."""
    count = 20_000 if quick else 100_000
    features = torch.rand(count, SIZE)
    vocabulary = [f"w{i}" for i in range(5000)]
    draws = torch.randint(5000, (count,)).tolist()
    names = [vocabulary[d] if d % 3 else f"{vocabulary[d]} {vocabulary[(d * 7) % 5000]}" for d in draws]

    def ours() -> None:
        KnowledgeBuilder(SIZE).add(features, names)

    def loop() -> None:
        sums: dict[str, Tensor] = {}
        for feature, name in zip(features[: count // 10], names[: count // 10], strict=True):
            for word in name.split():
                sums.setdefault(word, torch.zeros(SIZE, dtype=torch.float64)).add_(feature)

    seconds = medians({"ours": ours, "loop": loop}, 1 if quick else 3)
    row = {"regions_per_second": count / seconds["ours"], "speedup": 10 * seconds["loop"] / seconds["ours"]}
    table("(c) building knowledge", ["regions a second", "loop over ours"], [[*row.values()]])
    return {}, [row]


def main() -> None:
    """Runs all parts, or those that `--only` names."""
    run(__doc__ or "", scorer, reranking, building)


if __name__ == "__main__":
    main()
