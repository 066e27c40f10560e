"""What the method must show on rendered scenes, without pairs."""

from functools import cache
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_methods.datamodules import DigitScenesDataModule
from lit_methods.image_text import (
    MACK,
    Centring,
    KnowledgeBase,
    KnowledgeMatcher,
    SharedLinear,
    Whitening,
    build_knowledge,
)
from lit_methods.image_text.functional import CaptionUnits, UnitTable, match
from lit_methods.image_text.metrics import RetrievalRanks, recall_sum
from lit_methods.image_text.ranks import best_truth, count_rivals
from lit_methods.image_text.reranking import reranked_rivals

SEEDS = (0, 1, 2)


@cache
def _scenes(seed: int, shift: float = 0.0) -> DigitScenesDataModule:
    data = DigitScenesDataModule(num_train=400, num_knowledge=3000, shift=shift, seed=seed)
    data.setup()
    return data


@cache
def _knowledge(seed: int) -> KnowledgeBase:
    return build_knowledge(_scenes(seed).knowledge_dataloader())


def _recalls(t2i: Tensor, i2t: Tensor, image: Tensor, **options: Any) -> dict[str, Tensor]:
    images, found = torch.arange(len(t2i)), []
    for scores, query, candidate in ((t2i.T, image, images), (i2t, images, image)):
        metric = RetrievalRanks(**options)
        metric.update(
            count_rivals(scores, best_truth(scores, query, candidate), query, candidate), torch.arange(len(query))
        )
        found.append(metric.compute())
    return {"t2i": found[0]["R@1"], "i2t": found[1]["R@1"], "rsum": recall_sum(*found)}


def _score(data: DigitScenesDataModule, matcher: KnowledgeMatcher) -> tuple[Tensor, Tensor]:
    test = data.sets["test"]
    with torch.no_grad():
        t2i, i2t = matcher(test.regions.read(range(len(test.regions))).regions, test.captions)
    return t2i, i2t


@pytest.mark.parametrize("seed", SEEDS)
def test_without_training_far_above_chance(seed: int) -> None:
    data = _scenes(seed)
    found = _recalls(*_score(data, KnowledgeMatcher(_knowledge(seed))), data.sets["test"].image)
    assert found["t2i"] >= 20 * 0.5  # chance is one in 200 images
    assert found["i2t"] >= 20 * 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_matched_pooling_is_the_better_one_both_ways(seed: int) -> None:
    data = _scenes(seed)
    t2i, i2t = _score(data, KnowledgeMatcher(_knowledge(seed)))
    matched = _recalls(t2i, i2t, data.sets["test"].image)
    crossed = _recalls(i2t, t2i, data.sets["test"].image)
    assert matched["t2i"] > crossed["t2i"]
    assert matched["i2t"] > crossed["i2t"]


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffled_prototypes_are_at_chance(seed: int) -> None:
    data, knowledge = _scenes(seed), _knowledge(seed)
    rsums = []
    for shuffle in range(8):
        order = torch.randperm(len(knowledge), generator=torch.Generator().manual_seed(shuffle))
        shuffled = KnowledgeBase(
            knowledge.words, knowledge.prototypes[order], knowledge.counts, knowledge.head_counts,
            knowledge.modifier_counts,
        )  # fmt: skip
        rsums.append(_recalls(*_score(data, KnowledgeMatcher(shuffled)), data.sets["test"].image)["rsum"])
    chance = 2 * (0.5 + 2.5 + 5.0)
    assert torch.stack(rsums).mean() < 2 * chance  # a word may fall on its own kind
    assert _recalls(*_score(data, KnowledgeMatcher(knowledge)), data.sets["test"].image)["rsum"] > 10 * chance


def test_random_scores_are_at_chance() -> None:
    image = _scenes(0).sets["test"].image
    scores = torch.rand(2, 200, 1000, generator=torch.Generator().manual_seed(0))
    found = _recalls(scores[0], scores[1], image)
    assert abs(float(found["t2i"]) - 0.5) < 2.58 * 100 * (0.005 * 0.995 / 1000) ** 0.5
    assert abs(float(found["i2t"]) - 0.5) < 2.58 * 100 * (0.005 * 0.995 / 200) ** 0.5


def test_oracle_is_limited_by_equal_unit_sets_only() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = [sorted(torch.randperm(12, generator=generator)[:3].tolist()) for _ in range(60)]
    regions = torch.eye(12)[torch.tensor(chosen)]
    captions = CaptionUnits.from_mentions([[(word, -1) for word in words] for words in chosen])
    t2i, i2t = match(regions, UnitTable.build(captions, torch.eye(12)))
    found = _recalls(t2i, i2t, torch.arange(60), ties="pessimistic")
    unique = sum(chosen.count(words) == 1 for words in chosen)
    assert 0 < unique < 60
    torch.testing.assert_close(found["t2i"], torch.tensor(100 * unique / 60))
    torch.testing.assert_close(found["i2t"], torch.tensor(100 * unique / 60))


@pytest.mark.parametrize("closed_form", [Centring, Whitening])
def test_closed_forms_raise_rsum_on_hazy_scenes(closed_form: type[Centring]) -> None:
    data, knowledge = _scenes(0, 0.5), _knowledge(0)
    raw = _recalls(*_score(data, KnowledgeMatcher(knowledge)), data.sets["test"].image)
    transform = closed_form(80)
    transform.fit((batch["regions"][batch["mask"]] for batch in data.region_dataloader()), knowledge)
    found = _recalls(*_score(data, KnowledgeMatcher(knowledge, transform=transform)), data.sets["test"].image)
    assert found["rsum"] > raw["rsum"] + 50


@pytest.mark.parametrize("seed", SEEDS)
def test_unpaired_refinement_raises_rsum_by_50_on_hazy_scenes(seed: int, tmp_path: Any) -> None:
    data = _scenes(seed, 0.5)
    halves = next(iter(data.train_dataloader()))[0]
    assert "image" not in halves["captions"]
    assert int(halves["images"]["index"].max()) < 200  # captions come from images 200 to 399
    torch.manual_seed(seed)
    module = MACK(
        _knowledge(seed), transform=SharedLinear(80), temperature=0.05,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-3),
    )  # fmt: skip
    image = data.sets["test"].image
    raw = _recalls(*_score(data, KnowledgeMatcher(_knowledge(seed))), image)
    before = _score(data, module.matcher)
    torch.testing.assert_close(before, _score(data, KnowledgeMatcher(_knowledge(seed))), rtol=0, atol=1e-6)
    trainer = Trainer(
        max_steps=150, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert _recalls(*_score(data, module.matcher), image)["rsum"] > raw["rsum"] + 50


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5])
def test_reranking_improves_a_degraded_base(seed: int, alpha: float) -> None:
    data = _scenes(seed)
    image = data.sets["test"].image
    known = _score(data, KnowledgeMatcher(_knowledge(seed)))
    truth = (torch.arange(200).unsqueeze(1) == image).float()
    base = 2.2 * truth + torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
    sums = torch.zeros(2)
    for scores, other, query, candidate in (
        (base.T, known[0].T, image, torch.arange(200)),
        (base, known[1], torch.arange(200), image),
    ):
        for place, rivals in enumerate(reranked_rivals(scores, other, query, candidate, 15, alpha)):
            metric = RetrievalRanks()
            metric.update(rivals, torch.arange(len(query)))
            sums[place] += recall_sum(metric.compute())
    assert sums[1] > sums[0]
