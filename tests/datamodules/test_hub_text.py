"""Hub texts: a folder of parquet files is read exactly, and each way to fail has its sentence."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from lit_methods.datamodules import DatasetNotFoundError, Degradation, HubTextDataModule

NAMES = ["bad", "good"]


def _rows(count: int, word: str = "word", **columns: list[Any]) -> datasets.Dataset:
    features = {"text": datasets.Value("large_string"), "label": datasets.ClassLabel(names=NAMES)}
    rows = {"text": [f"{word} number {i}" for i in range(count)], "label": [i % 2 for i in range(count)]}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    for name, values in columns.items():
        made = made.add_column(name, values)
    return made


def _write(folder: Path, **parts: datasets.Dataset) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in parts.items():
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def _module(folder: Path | None, tmp_path: Path, **arguments: Any) -> HubTextDataModule:
    return HubTextDataModule(data_dir=folder, cache_dir=tmp_path / "cache", **arguments)


def test_folder_is_read_exactly(tmp_path: Path) -> None:
    folder = _write(tmp_path / "data", train=_rows(20), test=_rows(6, "test"))
    data = _module(folder, tmp_path, val_fraction=0.2)
    data.prepare_data()
    data.setup()
    assert data.train_set is not None
    assert data.val_set is not None
    assert data.test_set is not None
    assert data.test_set.texts == [f"test number {i}" for i in range(6)]
    assert data.test_set.labels.tolist() == [0, 1] * 3
    assert data.class_names == ("bad", "good")
    assert data.train_set.labels.bincount().tolist() == [8, 8]
    assert sorted(data.train_set.texts + data.val_set.texts) == sorted(_rows(20)["text"])


def test_published_validation_split_is_used(tmp_path: Path) -> None:
    data = _module(_write(tmp_path / "data", train=_rows(20), validation=_rows(4, "val")), tmp_path)
    data.setup("fit")
    assert data.train_set is not None
    assert data.val_set is not None
    assert len(data.train_set) == 20
    assert data.val_set.texts == [f"val number {i}" for i in range(4)]


def test_kept_classes_hold_for_each_split(tmp_path: Path) -> None:
    folder = _write(tmp_path / "data", train=_rows(20), validation=_rows(8), test=_rows(6))
    data = _module(folder, tmp_path, degradation=Degradation(classes=[1, 0], train_per_class=8, minority_rate=0.5))
    data.setup()
    assert data.class_names == ("good", "bad")
    assert data.train_set is not None
    assert data.test_set is not None
    assert data.train_set.labels.bincount().tolist() == [4, 8]
    assert data.test_set.labels.tolist() == [1, 0] * 3


def test_columns_can_be_named_and_must_be_clear(tmp_path: Path) -> None:
    rows = _rows(20, title=[f"title {i}" for i in range(20)], year=[i % 3 for i in range(20)])
    folder = _write(tmp_path / "data", train=rows)
    with pytest.raises(ValueError, match=r"needs exactly one string column, found \['text', 'title'\]"):
        _module(folder, tmp_path).setup("fit")
    with pytest.raises(ValueError, match="label_column='stars' is none of the columns"):
        _module(folder, tmp_path, text_column="title", label_column="stars").setup("fit")
    data = _module(folder, tmp_path, text_column="title", label_column="year", val_fraction=0.0)
    data.setup("fit")
    assert data.train_set is not None
    assert data.train_set.texts[3] == "title 3"
    assert data.class_names == ("0", "1", "2")
    with pytest.raises(ValueError, match="text_column='year' of split 'train' holds 0, no text, in row 0"):
        _module(folder, tmp_path, text_column="year").setup("fit")
    with pytest.raises(ValueError, match="label_column='title' of split 'train' holds values that are no integers"):
        _module(folder, tmp_path, text_column="text", label_column="title").setup("fit")


def test_hidden_labels_are_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "data", train=_rows(20, y=[0, 1] * 10), test=_rows(4, y=[-1] * 4))
    with pytest.raises(ValueError, match="label_column='y' of split 'test' holds -1, a hidden label"):
        _module(folder, tmp_path, label_column="y").setup("test")


def test_missing_split_and_unreachable_hub_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _write(tmp_path / "data", train=_rows(20))
    with pytest.raises(DatasetNotFoundError, match=r"Split 'test' .*test-\*\.parquet.* not found\. Looked in: .*data"):
        _module(folder, tmp_path).setup("test")

    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.delenv("LIT_METHODS_DATA", raising=False)
    with pytest.raises(DatasetNotFoundError, match=r"Data set 'someone/reviews' not found.*no route"):
        _module(None, tmp_path, dataset="someone/reviews").prepare_data()


def test_what_setup_finds_out_is_announced_as_such(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'num_classes'; call setup\('fit'\) first"):
        _ = _module(None, tmp_path).num_classes


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "arguments", "sizes"),
    [
        ("sst5", {}, [8544, 1101, 2210]),
        ("sst5", {"train_per_class": 40, "val_per_class": 2}, [200, 10, 2210]),
        ("sst2", {"train_per_class": 1000, "minority_rate": 0.02, "val_per_class": 10}, [1020, 20, 1821]),
        ("trec", {"train_per_class": 40, "val_per_class": 5}, [240, 30, 500]),
    ],
)
def test_real_sets_have_the_sizes_of_the_paper(
    name: str, arguments: dict[str, Any], sizes: list[int], data_root: Path, tmp_path: Path
) -> None:
    data = _module(data_root / name, tmp_path, degradation=Degradation(**arguments) if arguments else None)
    data.setup()
    parts = (data.train_set, data.val_set, data.test_set)
    assert [len(part) for part in parts if part is not None] == sizes
    batch = next(iter(data.test_dataloader()))
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != data.pad_token_id).long())
