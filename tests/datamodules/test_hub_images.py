"""Hub images: parquet folders and the hub give the same tensors, and each way to fail has its sentence."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from lit_methods.datamodules import DatasetNotFoundError, HubImageDataModule

NAMES = ["cat", "dog"]


def _rows(count: int, shape: tuple[int, ...] = (6, 5, 3), seed: int = 0) -> tuple[np.ndarray, datasets.Dataset]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    columns = {"img": [Image.fromarray(image) for image in pixels], "label": [i % 2 for i in range(count)]}
    return pixels, datasets.Dataset.from_dict(columns, features=features)


def _write(folder: Path, **parts: datasets.Dataset) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in parts.items():
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def _module(folder: Path | None, tmp_path: Path, **arguments: Any) -> HubImageDataModule:
    return HubImageDataModule(data_dir=folder, cache_dir=tmp_path / "cache", **arguments)


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5)])
def test_folder_is_decoded_exactly(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels, test = _rows(8, shape)
    folder = _write(tmp_path / "data", train=_rows(20, shape)[1], test=test)
    datamodule = _module(folder, tmp_path, val_fraction=0.2, batch_size=8)
    datamodule.prepare_data()
    datamodule.setup()
    images, labels = next(iter(datamodule.test_dataloader()))
    expected = pixels.reshape(8, 6, 5, -1).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(images.numpy(), expected / 255, rtol=1e-6)
    assert labels.tolist() == [0, 1] * 4
    assert datamodule.class_names == ("cat", "dog")
    assert datamodule.num_classes == 2
    assert datamodule.image_shape == expected.shape[1:]
    assert datamodule.train_set is not None
    assert datamodule.val_set is not None
    assert datamodule.train_set.labels.bincount().tolist() == [8, 8]
    assert datamodule.val_set.labels.bincount().tolist() == [2, 2]


def test_published_validation_split_is_used(tmp_path: Path) -> None:
    pixels, validation = _rows(6, seed=3)
    folder = _write(tmp_path / "data", train=_rows(20)[1], validation=validation)
    datamodule = _module(folder, tmp_path)
    datamodule.setup("fit")
    assert datamodule.train_set is not None
    assert datamodule.val_set is not None
    assert len(datamodule.train_set) == 20
    np.testing.assert_array_equal(datamodule.val_set.images.numpy(), pixels.transpose(0, 3, 1, 2))


def test_shared_folder_is_preferred_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "pets", train=_rows(20)[1])
    monkeypatch.setenv("LIT_METHODS_DATA", str(tmp_path))
    datamodule = _module(None, tmp_path, dataset="someone/pets")
    datamodule.prepare_data()
    datamodule.setup("fit")
    assert datamodule.train_set is not None
    assert len(datamodule.train_set) == 18


def test_hub_is_asked_in_prepare_data_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load(*arguments: Any, **_: Any) -> datasets.DatasetDict:
        asked.append(arguments)
        return datasets.DatasetDict(train=_rows(20)[1], test=_rows(4)[1])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.delenv("LIT_METHODS_DATA", raising=False)
    datamodule = _module(None, tmp_path, dataset="someone/pets", subset="small")
    assert not asked
    datamodule.prepare_data()
    assert asked == [("someone/pets", "small")]
    datamodule.setup()
    assert datamodule.test_set is not None
    assert len(datamodule.test_set) == 4


def test_unreachable_hub_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setenv("LIT_METHODS_DATA", str(tmp_path))
    with pytest.raises(DatasetNotFoundError) as caught:
        _module(None, tmp_path, dataset="someone/pets").prepare_data()
    for part in ("'someone/pets'", str(tmp_path), "the hub", "no route", "data_dir=", "LIT_METHODS_DATA"):
        assert part in str(caught.value)


def test_missing_split_is_explained(tmp_path: Path) -> None:
    folder = _write(tmp_path / "data", train=_rows(20)[1])
    with pytest.raises(DatasetNotFoundError, match=r"Split 'test' .*test-\*\.parquet.* not found\. Looked in: .*data"):
        _module(folder, tmp_path).setup("test")


def test_what_setup_finds_out_is_announced_as_such(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'num_classes'; call setup\('fit'\) first"):
        _ = _module(None, tmp_path).num_classes


def test_columns_can_be_named_and_must_be_clear(tmp_path: Path) -> None:
    rows = _rows(20)[1]
    fine = datasets.ClassLabel(names=["a", "b", "c", "d"])
    rows = rows.add_column("fine", [i % 4 for i in range(20)]).cast_column("fine", fine)
    folder = _write(tmp_path / "data", train=rows)
    with pytest.raises(ValueError, match=r"label_column=None needs exactly one ClassLabel column, found \['label', 'f"):
        _module(folder, tmp_path).setup("fit")
    with pytest.raises(ValueError, match="image_column='picture' is none of the columns"):
        _module(folder, tmp_path, image_column="picture").setup("fit")
    datamodule = _module(folder, tmp_path, label_column="fine", val_fraction=0.0)
    datamodule.setup("fit")
    assert datamodule.num_classes == 4
    assert datamodule.train_set is not None
    assert datamodule.train_set.labels.tolist() == [0, 1, 2, 3] * 5


def test_plain_integer_labels_are_counted_and_hidden_ones_refused(tmp_path: Path) -> None:
    rows = _rows(20)[1].remove_columns("label")
    folder = _write(
        tmp_path / "data",
        train=rows.add_column("y", [i % 3 for i in range(20)]),
        test=rows.add_column("y", [-1] * 20),
    )
    datamodule = _module(folder, tmp_path, label_column="y", val_fraction=0.2)
    datamodule.setup("fit")
    assert datamodule.class_names == ("0", "1", "2")
    with pytest.raises(ValueError, match="label_column='y' of split 'test' holds -1, a hidden label"):
        datamodule.setup("test")


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    mixed = datasets.concatenate_datasets([_rows(10)[1], _rows(10, (7, 7, 3))[1]])
    folder = _write(tmp_path / "data", train=mixed)
    with pytest.raises(
        ValueError, match=r"Image 10 of 'train' is \(3, 7, 7\), the first is \(3, 6, 5\); pass image_size"
    ):
        _module(folder, tmp_path).setup("fit")
    datamodule = _module(folder, tmp_path, image_size=(4, 3))
    datamodule.setup("fit")
    assert datamodule.image_shape == (3, 4, 3)


@pytest.mark.data
@pytest.mark.slow
def test_real_cifar10_is_balanced(data_root: Path, tmp_path: Path) -> None:
    datamodule = _module(data_root / "cifar10", tmp_path, val_fraction=0.2)
    datamodule.setup()
    assert datamodule.train_set is not None
    assert datamodule.test_set is not None
    assert datamodule.train_set.labels.bincount().tolist() == [4000] * 10
    assert datamodule.test_set.labels.bincount().tolist() == [1000] * 10
    assert datamodule.image_shape == (3, 32, 32)
    assert datamodule.class_names[:2] == ("airplane", "automobile")
    mean = torch.stack([datamodule.test_set[i][0] for i in range(500)]).mean(dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([0.49, 0.48, 0.45]), atol=0.03, rtol=0)
