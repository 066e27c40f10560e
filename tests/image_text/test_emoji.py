"""What the method shows on real pictures: Noto's emoji by knowledge from OpenMoji's drawings of other emoji."""

import pytest
import torch

from lit_methods.datamodules import DatasetNotFoundError, EmojiDataModule
from lit_methods.image_text import Centring, KnowledgeBase, KnowledgeMatcher, StreamingRetrieval, build_knowledge

CHANCE = 2 * 100 * (1 + 5 + 10) / 300  # 300 pictures, and as many captions for each
SEEDS = (0, 1, 2)
pytestmark = [pytest.mark.data, pytest.mark.slow]


def _data(seed: int) -> EmojiDataModule:
    data = EmojiDataModule(seed=seed)
    try:
        data.prepare_data()
    except DatasetNotFoundError as absent:
        pytest.skip(str(absent))
    data.setup()
    return data


def _rsum(data: EmojiDataModule, matcher: KnowledgeMatcher) -> float:
    test = data.sets["test"]
    retrieval, batch = StreamingRetrieval(matcher, list(test.captions), test.image), test.regions.read(range(300))
    with torch.no_grad():
        retrieval.add(batch.regions, batch.mask, torch.arange(300))
    return float(retrieval.compute()["rsum"])


@pytest.mark.parametrize("seed", SEEDS)
def test_words_carry_over_to_another_style(seed: int) -> None:
    data = _data(seed)
    assert not set(data.characters("test")) & set(data.characters("train"))
    knowledge = build_knowledge(data.knowledge_dataloader())
    raw = _rsum(data, KnowledgeMatcher(knowledge))
    assert raw > 5 * CHANCE
    centring = Centring(knowledge.feature_size)
    centring.fit((batch["regions"][batch["mask"]] for batch in data.region_dataloader()), knowledge)
    assert _rsum(data, KnowledgeMatcher(knowledge, transform=centring)) > raw + 10


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffled_prototypes_are_at_chance(seed: int) -> None:
    data = _data(seed)
    knowledge = build_knowledge(data.knowledge_dataloader())
    rsums = []
    for shuffle in range(8):
        order = torch.randperm(len(knowledge), generator=torch.Generator().manual_seed(shuffle))
        tables = (knowledge.counts, knowledge.head_counts, knowledge.modifier_counts)
        shuffled = KnowledgeBase(knowledge.words, knowledge.prototypes[order], *tables)
        rsums.append(_rsum(data, KnowledgeMatcher(shuffled)))
    assert torch.tensor(rsums).mean() < 1.5 * CHANCE
