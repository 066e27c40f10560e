from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from lit_methods import TranslationDataModule
from lit_methods.datamodules import DatasetNotFoundError

GERMAN = ["ein Hund läuft", "ein Hund und ein Haus", "ein Haus", "der Hund läuft und läuft"]
ENGLISH = ["a dog runs", "a dog and a house", "a house", "the dog runs and runs"]


def _folder(folder: Path, splits: tuple[str, ...] = ("train", "validation", "test"), **columns: list[str]) -> Path:
    for split in splits:
        rows = columns or {"de": GERMAN * 2, "en": ENGLISH * 2}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}-0.parquet")
    return folder


def _data(folder: Path, **settings: Any) -> TranslationDataModule:
    return TranslationDataModule(data_dir=folder, cache_dir=folder / "cache", **({"batch_size": 3} | settings))


def test_batches_hold_the_sentences_from_start_to_end(tmp_path: Path) -> None:
    data = _data(_folder(tmp_path), pad_to_max_length=False)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    for key, tokenizer, texts in (
        ("input_ids", data.tokenizers[0], GERMAN),
        ("target_ids", data.tokenizers[1], ENGLISH),
    ):
        for row, text in zip(batch[key], texts, strict=False):
            words = row[row != 0].tolist()
            assert (words[0], words[-1]) == (2, 3)
            assert tokenizer.convert_ids_to_tokens(words[1:-1]) == text.lower().split()
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != 0).long())
    assert batch["input_ids"].shape == (3, 7)
    assert batch["target_ids"].shape == (3, 7)


def test_all_sentences_may_have_one_length(tmp_path: Path) -> None:
    data = _data(_folder(tmp_path), max_length=5)
    data.setup("fit")
    for batch in data.train_dataloader():
        assert {tensor.shape[1] for tensor in batch.values()} == {5}
        assert all(row[row != 0][-1] == 3 for row in batch["target_ids"])


def test_vocabularies_are_of_the_training_set_alone(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ("train",))
    _folder(tmp_path, ("validation", "test"), de=["neu neu neu"] * 4, en=["new new new"] * 4)
    data = _data(folder)
    data.setup("test")
    sizes = data.vocab_sizes
    batch = next(iter(data.test_dataloader()))
    assert batch["input_ids"][0, :5].tolist() == [2, 1, 1, 1, 3]
    data.setup("fit")
    assert data.vocab_sizes == sizes


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"max_length": 2}, "max_length=2 must be at least 3"),
        ({"num_workers": -1}, "num_workers=-1 must be at least 0"),
    ],
)
def test_bad_arguments(settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TranslationDataModule(**settings)


def test_missing_column_split_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source_column='fr' is none of the columns \['de', 'en'\]"):
        _data(_folder(tmp_path), source_column="fr").setup("fit")
    with pytest.raises(DatasetNotFoundError):
        _data(tmp_path / "nowhere").setup("fit")
    only = tmp_path / "only"
    only.mkdir()
    with pytest.raises(ValueError, match=r"has no split 'validation'; add validation-0\.parquet"):
        _data(_folder(only, ("train", "test"))).setup("fit")


def test_before_setup() -> None:
    data = TranslationDataModule()
    with pytest.raises(RuntimeError, match="no vocabulary yet"):
        _ = data.vocab_sizes
    with pytest.raises(RuntimeError, match=r"not set up; call setup\('fit'\) first"):
        data.train_dataloader()
