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

from benchmarks._emoji import rerankings
from benchmarks._harness import medians, run, spread, table
from benchmarks._index import search_with
from benchmarks._retrieval import compare, lines
from lit_methods.datamodules import DatasetNotFoundError, DigitScenesDataModule, EmojiDataModule
from lit_methods.image_text.builder import KnowledgeBuilder
from lit_methods.image_text.functional import CaptionUnits, UnitTable, match
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
    sizes = {"half of Flickr30k": (500, 5000, 2870, 2144, 10)}
    if not quick:
        sizes = {"Flickr30k": (1000, 5000, 2870, 2144, 40), "MSCOCO 5K": (5000, 25_000, 7000, 5000, 10)}
    rows, headlines = [], {"scorer_speedup_vs_loop": float("inf"), "scorer_peak_mib": 0.0}
    for name, (images, texts, words, composites, looped) in sizes.items():
        regions = torch.rand(images, REGIONS, SIZE, generator=generator)
        prototypes = torch.rand(words, SIZE, generator=generator)
        captions = captions_like(texts, words, composites, generator)
        unit_table = UnitTable.build(captions, prototypes)
        with PeakMemory() as ours:
            match(regions, unit_table)
        with PeakMemory() as theirs:
            loop = CaptionLoop(regions, captions, prototypes)
            loop.scores(range(looped))
        product = partial(torch.mm, unit_table.directions, normalize(regions[:100], dim=2).flatten(0, 1).T)
        sides: dict[str, Callable[[], Any]] = {
            "ours": partial(match, regions, unit_table),
            "loop": partial(loop.scores, range(looped)),
            "product": product,
        }
        repeats = 1 if quick or images > 1000 else 3
        found = medians(sides, repeats, warm_up=0)
        row = {
            "size": name,
            "units": unit_table.num_rows,
            "seconds": found["ours"],
            "loop_over_ours": found["loop"] * texts / looped / found["ours"],
            "peak_mib": ours.mib,
            "loop_peak_mib": theirs.mib,
            "product_share": found["product"] * images / 100 / found["ours"],
        }
        headlines["scorer_speedup_vs_loop"] = min(headlines["scorer_speedup_vs_loop"], row["loop_over_ours"])
        headlines["scorer_peak_mib"] = max(headlines["scorer_peak_mib"], ours.mib)
        rows.append(row)
        del loop, regions, sides
    table(
        "(a) all scores both ways, both matrices held: the loop over captions (a part, scaled up) beside ours",
        ["size", "rows", "our s", "loop / ours", "our MiB above the data", "the part of the loop's", "product's share"],
        [[*row.values()] for row in rows],
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
    builder = KnowledgeBuilder(SIZE)

    def loop() -> None:
        sums: dict[str, Tensor] = {}
        for feature, name in zip(features[: count // 10], names[: count // 10], strict=True):
            for word in name.split():
                sums.setdefault(word, torch.zeros(SIZE, dtype=torch.float64)).add_(feature)

    seconds = medians({"ours": partial(builder.add, features, names), "loop": loop}, 3 if quick else 5)
    start = time.process_time()
    builder.add(features, names)
    row = {
        "regions_per_second": count / seconds["ours"],
        "regions_per_processor_second": count / (time.process_time() - start),
        "loop_over_ours": 10 * seconds["loop"] / seconds["ours"],
    }
    columns = ["regions a second", "regions a processor second", "loop / ours"]
    table("(c) building knowledge, 5,000 words of which each block holds nearly all", columns, [[*row.values()]])
    return {}, [row]


def searching(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Captions against many images: exact scores of all, and of those that an approximate index of regions finds."""
    try:
        import faiss
    except ModuleNotFoundError:
        print("(d) needs faiss: pip install faiss-cpu")
        return {}, []
    return {}, search_with(faiss, 2000 if quick else 100_000, 50 if quick else 200)


def scenes(quick: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """Hazy and clear scenes of digits: every map, temperature, rate and epochs chosen on validation scenes."""
    figures = {}
    for name, shift in (("hazy", 0.5),) if quick else (("clear", 0.0), ("hazy", 0.5)):
        found = compare(
            lambda seed, shift=shift: DigitScenesDataModule(num_val=200, shift=shift, seed=seed),
            seeds=range(1) if quick else range(5),
            temperatures=(0.05,) if quick else (0.02, 0.05, 0.1),
            rates=(1e-3,) if quick else (3e-4, 1e-3),
            shrinkages=(0.1,) if quick else (0.01, 0.1, 1.0),
            epochs=2 if quick else 12,
        )
        table(f"(e) {name} scenes, mean and deviation over the seeds", _COLUMNS, lines(found))
        figures[name] = found
    return {}, figures


def emoji(quick: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """Noto's emoji by OpenMoji's knowledge: every map, and weak matchers before and after re-ranking."""
    if quick:
        return {}, {}
    try:
        found = compare(
            lambda seed: EmojiDataModule(seed=seed),
            seeds=range(5),
            temperatures=(0.02, 0.05, 0.1),
            rates=(1e-5, 1e-4),
            shrinkages=(0.01, 0.1, 1.0, 10.0),
            epochs=6,
        )
    except DatasetNotFoundError as absent:
        print(f"(f) {absent}")
        return {}, {}
    table("(f) emoji, mean and deviation over five splits", _COLUMNS, lines(found))
    figures: dict[str, Any] = {"maps": found, "rerank": rerankings(range(5))}
    gains = [
        [pairs, spread([one["base_rsum"] for one in runs]), spread([one["rerank_rsum"] for one in runs]),
         min(one["rerank_rsum"] - one["base_rsum"] for one in runs),
         str([(round(one["rerank_alpha_t2i"], 2), round(one["rerank_alpha_i2t"], 2)) for one in runs])]
        for pairs, runs in figures["rerank"].items()
    ]  # fmt: skip
    table("(g) emoji, a matcher taught by few pairs", ["pairs", "rSum", "re-ranked", "least gain", "alphas"], gains)
    return {}, figures


_COLUMNS = ["map", "chosen", "t2i R@1", "t2i R@10", "i2t R@1", "i2t R@10", "rSum"]


def main() -> None:
    """Runs all parts, or those that `--only` names."""
    run(__doc__ or "", scorer, reranking, building, searching, scenes, emoji)


if __name__ == "__main__":
    main()
