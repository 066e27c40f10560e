"""Learned augmentation inside a Trainer: it learns to keep the label, and is out of the way otherwise (card 8.4)."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_methods import ConditionalMaskedLM, DataWeighting, LearnedAugmentation, TextClassifier
from lit_methods.data_manipulation import (
    DoubleBackward,
    FiniteDifference,
    Hypergradient,
    MaskedLMAugmenter,
    PlainGradient,
)
from tests.battery.state import plain, traces

WORDS, MASK, T = 20, 60, 12
pytestmark = pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")  # toys without validation


class WordTable(nn.Module):
    """A language model whose words depend on the label alone."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(MASK + 1, 2)
        self.token_type_embeddings = nn.Embedding(2, MASK + 1)
        nn.init.zeros_(self.token_type_embeddings.weight)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.word_embeddings

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.token_type_embeddings(token_type_ids))


class MeanEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(MASK + 1, 16), nn.Linear(16, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.words(input_ids).mean(1))


def _sentences(count: int, seed: int) -> list[dict[str, Any]]:
    """12 words, 4 of them of a class, 80 % of these of the label's own."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for i in range(count):
        label = i % 2
        own = torch.rand(4, generator=generator) < 0.8
        of_class = torch.where(own, label, 1 - label) * WORDS + torch.randint(WORDS, (4,), generator=generator)
        neutral = 2 * WORDS + torch.randint(WORDS, (T - 4,), generator=generator)
        ids = torch.cat([of_class, neutral])[torch.randperm(T, generator=generator)]
        rows.append({"input_ids": ids, "attention_mask": torch.ones(T, dtype=torch.int64), "label": label, "index": i})
    return rows


def _parts(seed: int = 0, **options: Any) -> tuple[TextClassifier, LearnedAugmentation]:
    torch.manual_seed(seed)
    module = TextClassifier(MeanEmbedding(), 2, optimizer=lambda p: torch.optim.SGD(p, lr=0.3))
    augmenter = MaskedLMAugmenter(2, WordTable(), mask_token_id=MASK, special_token_ids=[MASK], min_masked=3)
    val = DataLoader(_sentences(20, seed=1000 + seed), 20)
    chosen = {"augmenter_optimizer": lambda p: torch.optim.Adam(p, lr=1e-2), "val_dataloader": val, **options}
    return module, LearnedAugmentation(augmenter, **chosen)


def _fit(module: TextClassifier, *callbacks: Any, epochs: int = 2, seed: int = 0, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "devices": 1, "max_epochs": epochs}
    trainer = Trainer(callbacks=list(callbacks), **{**quiet, **options})
    trainer.fit(module, DataLoader(_sentences(40, seed), 4))
    return trainer


def _wrong_mass(callback: LearnedAugmentation) -> float:
    """Probability that the augmenter gives to the other class's words."""
    table = callback.augmenter.masked_lm.token_type_embeddings.weight.softmax(-1)
    return float((table[0, WORDS : 2 * WORDS].sum() + table[1, :WORDS].sum()).detach() / 2)


def test_words_of_the_other_class_are_avoided() -> None:
    module, callback = _parts()
    assert _wrong_mass(callback) == pytest.approx(20 / 61)
    _fit(module, callback, epochs=20)
    assert _wrong_mass(callback) < 0.26


@pytest.mark.slow
def test_words_of_the_other_class_are_avoided_over_five_seeds() -> None:
    found: dict[str, list[float]] = {"difference": [], "unrolled": []}
    for seed in range(5):
        for name, derivative in (("difference", FiniteDifference()), ("unrolled", DoubleBackward())):
            module, callback = _parts(seed, hypergradient=Hypergradient(derivative, PlainGradient()))
            _fit(module, callback, epochs=60, seed=seed)
            found[name].append(_wrong_mass(callback))
    assert all(sum(values) / 5 < 0.12 for values in found.values()), found


def test_fixed_augmentation_leaves_the_augmenter() -> None:
    module, callback = _parts(learn=False, warmup_epochs=0)
    before = plain(callback.augmenter.state_dict())
    _fit(module, callback)
    assert plain(callback.augmenter.state_dict()) == before


def test_augmented_batches_train_otherwise_than_plain_ones() -> None:
    results = []
    for callbacks in (False, True):
        module, callback = _parts(learn=False, warmup_epochs=0)
        _fit(module, *([callback] if callbacks else []))
        results.append(plain(module.state_dict()))
    assert results[0] != results[1]
    module, callback = _parts(warmup_epochs=5)
    _fit(module, callback)
    assert plain(module.state_dict()) == results[0]


def test_a_step_of_the_augmenter_leaves_the_classifier() -> None:
    results = []
    for learn in (True, False):  # at rate zero it draws and differentiates, and yet changes nothing
        still = {"augmenter_optimizer": lambda p: torch.optim.Adam(p, lr=0.0)}
        module, callback = _parts(warmup_epochs=0, learn=learn, **still)
        found = traces(module)
        _fit(module, callback)
        assert traces(module) == found
        results.append((plain(module.state_dict()), torch.get_rng_state().tolist()))
    assert results[0] == results[1]


def test_weights_and_augmentation_together() -> None:
    module, augmentation = _parts(warmup_epochs=0)
    val = DataLoader(_sentences(20, seed=7), 20)
    weighting = DataWeighting(val, 40, warmup_epochs=0)
    _fit(module, augmentation, weighting, accumulate_grad_batches=2)
    assert weighting.strategy.table.visits.tolist() == [2] * 40
    assert weighting.weights().std() > 0
    assert _wrong_mass(augmentation) != pytest.approx(20 / 61, abs=1e-6)


def test_pretrained_weights_come_from_the_modules_checkpoint(tmp_path: Path) -> None:
    _, callback = _parts()
    pretraining = ConditionalMaskedLM(callback.augmenter, optimizer=lambda p: torch.optim.Adam(p, lr=0.05))
    trainer = _fit(pretraining, epochs=5)
    trainer.save_checkpoint(tmp_path / "augmenter.ckpt")
    table = callback.augmenter.masked_lm.token_type_embeddings.weight.softmax(-1).detach()
    assert table[0, :WORDS].sum() > table[0, WORDS : 2 * WORDS].sum()
    module, fresh = _parts(checkpoint=tmp_path / "augmenter.ckpt", learn=False)
    _fit(module, fresh)
    assert plain(fresh.augmenter.state_dict()) == plain(pretraining.augmenter.state_dict())


def test_a_checkpoint_without_an_augmenter_is_refused(tmp_path: Path) -> None:
    module, callback = _parts(checkpoint=tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError, match=r"^checkpoint=.*other\.ckpt does not exist: fit a ConditionalMaskedLM"):
        _fit(module, callback)
    torch.save({"state_dict": {"layer.weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"^checkpoint=.*other\.ckpt holds no augmenter; pass one of a Conditional"):
        _fit(module, callback)


def _batches() -> Iterator[Any]:
    yield from DataLoader([(torch.ones(3), 1)], 1)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="num_variants=0 must be at least 1"):
        _parts(num_variants=0)
    with pytest.raises(MisconfigurationException, match=r"lookahead=TrainingStep\(\) has no step"):
        _parts(hypergradient=Hypergradient())
    module, callback = _parts(warmup_epochs=0)
    with pytest.raises(ValueError, match="is no dict with input_ids, attention_mask and label"):
        Trainer(callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1).fit(
            module, list(_batches())
        )
    module, callback = _parts(val_dataloader=None)
    with pytest.raises(MisconfigurationException, match="or learn=False for fixed augmentation"):
        _fit(module, callback)
