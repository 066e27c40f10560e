"""Retrieval on whole splits, raw, in closed form and cycle-trained; what is chosen is chosen on validation sets."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from benchmarks._harness import spread
from lit_methods.datamodules import RetrievalDataModule
from lit_methods.image_text import (
    MACK,
    Centring,
    FeatureMap,
    KnowledgeBase,
    KnowledgeMatcher,
    SharedLinear,
    StreamingRetrieval,
    Whitening,
    build_knowledge,
)

Recalls = dict[str, float]


def recalls(data: RetrievalDataModule, matcher: KnowledgeMatcher, split: Any) -> Recalls:
    """All recalls, in percent, rSum, and the captions without a known word."""
    found = data.sets[split]
    retrieval = StreamingRetrieval(matcher, list(found.captions), found.image)
    batch = found.regions.read(range(len(found.regions)))
    with torch.no_grad():
        retrieval.add(batch.regions, batch.mask, torch.arange(len(found.regions)))
    return {name: float(value) for name, value in retrieval.compute().items()} | {"silent": retrieval.num_silent}


def fitted(transform: Centring, data: RetrievalDataModule, knowledge: KnowledgeBase) -> Centring:
    """A closed form with its statistics of the unpaired training images."""
    transform.fit((batch["regions"][batch["mask"]] for batch in data.region_dataloader()), knowledge)
    return transform


class _EachEpoch(Callback):
    """Recalls on both held-out sets after each epoch."""

    def __init__(self, data: RetrievalDataModule) -> None:
        self.data = data
        self.found: list[dict[str, Recalls]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        matcher = pl_module.matcher
        assert isinstance(matcher, KnowledgeMatcher)
        self.found.append({split: recalls(self.data, matcher, split) for split in ("validation", "test")})


def cycle(
    data: RetrievalDataModule, knowledge: KnowledgeBase, temperature: float, rate: float, epochs: int, seed: int
) -> list[dict[str, Recalls]]:
    """Cycle training of a shared matrix; recalls after each epoch."""
    seed_everything(seed, verbose=False)
    module = MACK(
        knowledge,
        transform=SharedLinear(knowledge.feature_size),
        temperature=temperature,
        optimizer=partial(torch.optim.Adam, lr=rate),
    )
    watch = _EachEpoch(data)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=data)
    return watch.found


def compare(
    make: Callable[[int], RetrievalDataModule],
    seeds: Sequence[int],
    temperatures: Sequence[float],
    rates: Sequence[float],
    shrinkages: Sequence[float],
    epochs: int,
) -> dict[str, Any]:
    """Every map on every seed: test recalls of what has the best mean rSum on the seeds' validation sets.

    Returns:
        By map `{"chosen": ..., "test": [recalls by seed]}`.
    """
    runs: dict[str, dict[Any, list[dict[str, Recalls]]]] = {}

    def note(name: str, chosen: Any, both: dict[str, Recalls]) -> None:
        runs.setdefault(name, {}).setdefault(chosen, []).append(both)

    for seed in seeds:
        data = make(seed)
        data.prepare_data()
        data.setup()
        knowledge = build_knowledge(data.knowledge_dataloader() or ())
        size = knowledge.feature_size
        closed: list[tuple[str, Any, FeatureMap]] = [
            ("none", "", FeatureMap()),
            ("Centring", "", fitted(Centring(size), data, knowledge)),
        ]
        closed += [("Whitening", s, fitted(Whitening(size, s), data, knowledge)) for s in shrinkages]
        for name, chosen, transform in closed:
            matcher = KnowledgeMatcher(knowledge, transform=transform)
            note(name, chosen, {split: recalls(data, matcher, split) for split in ("validation", "test")})
        for temperature, rate in itertools.product(temperatures, rates):
            for epoch, both in enumerate(cycle(data, knowledge, temperature, rate, epochs, seed), start=1):
                note("SharedLinear", (temperature, rate, epoch), both)
            print(f"seed {seed}, temperature {temperature}, rate {rate}: done", flush=True)
    found = {}
    for name, settings in runs.items():
        chosen = max(settings, key=lambda s: statistics.mean(both["validation"]["rsum"] for both in settings[s]))
        found[name] = {"chosen": chosen, "test": [both["test"] for both in settings[chosen]]}
    return found


def lines(found: dict[str, Any]) -> list[list[Any]]:
    """Lines of a table: map, what was chosen, and mean and deviation over the seeds."""
    keys = ("t2i_R@1", "t2i_R@10", "i2t_R@1", "i2t_R@10", "rsum")
    return [
        [name, str(one["chosen"]), *(spread([recall[key] for recall in one["test"]]) for key in keys)]
        for name, one in found.items()
    ]
