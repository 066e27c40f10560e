"""Fashion-MNIST: idx files are read byte by byte, found where promised, and their absence is explained."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_methods.datamodules import DatasetNotFoundError, FashionMNISTDataModule, fashion_mnist
from lit_methods.datamodules.fashion_mnist import read_idx


def _idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def _write(folder: Path, packed: bool = True) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True, exist_ok=True)
    random, written = np.random.default_rng(0), {}
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(_idx(values)) if packed else _idx(values))
        written[prefix] = images, labels
    return written


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4)])
def test_idx_values_and_shape_survive(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "values").write_bytes(_idx(values))
    (tmp_path / "values.gz").write_bytes(gzip.compress(_idx(values)))
    for name in ("values", "values.gz"):
        np.testing.assert_array_equal(read_idx(tmp_path / name).numpy(), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00", "no idx file of unsigned bytes"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "no idx file of unsigned bytes"),
        (b"\x00\x00\x08\x02\x00\x00\x00\x01", "ends inside its header"),
        (_idx(np.zeros((2, 3), np.uint8))[:-1], r"holds 5 values and announces \[2, 3\]"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "broken")


@pytest.mark.parametrize("packed", [True, False])
def test_reads_a_folder(tmp_path: Path, packed: bool) -> None:
    images, labels = _write(tmp_path, packed)["t10k"]
    datamodule = FashionMNISTDataModule(tmp_path, val_fraction=0.25, batch_size=20)
    datamodule.setup()
    assert datamodule.train_set is not None
    assert datamodule.val_set is not None
    assert (len(datamodule.train_set), len(datamodule.val_set)) == (30, 10)
    batch, batch_labels = next(iter(datamodule.test_dataloader()))
    np.testing.assert_allclose(batch.numpy(), images[:, None] / 255, rtol=1e-6)
    assert torch.equal(batch_labels, torch.from_numpy(labels.astype(np.int64)))
    assert datamodule.num_classes == 10


def test_looks_in_the_shared_folder_first_and_then_in_debians(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "_DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("LIT_METHODS_DATA", str(tmp_path / "shared"))
    FashionMNISTDataModule(val_fraction=0.25).setup()
    _write(tmp_path / "shared" / "fashion-mnist")
    (tmp_path / "debian" / "t10k-labels-idx1-ubyte.gz").unlink()
    FashionMNISTDataModule(val_fraction=0.25).setup()


def test_absence_names_every_place_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "_DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("LIT_METHODS_DATA", str(tmp_path / "shared"))
    with pytest.raises(DatasetNotFoundError) as caught:
        FashionMNISTDataModule().setup("fit")
    message = str(caught.value)
    for part in (
        "train-images-idx3-ubyte.gz",
        str(tmp_path / "shared" / "fashion-mnist"),
        str(tmp_path / "debian"),
        "Debian package dataset-fashion-mnist",
        "data_dir=",
        "LIT_METHODS_DATA",
    ):
        assert part in message
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        FashionMNISTDataModule(tmp_path / "elsewhere").setup("fit")


def test_construction_touches_no_file(tmp_path: Path) -> None:
    assert FashionMNISTDataModule(tmp_path / "nowhere").image_shape == (1, 28, 28)


@pytest.mark.data
def test_real_files_have_the_published_sizes() -> None:
    datamodule = FashionMNISTDataModule(val_fraction=0.1)
    try:
        datamodule.setup()
    except DatasetNotFoundError as error:
        pytest.skip(str(error))
    assert datamodule.train_set is not None
    assert datamodule.val_set is not None
    assert datamodule.test_set is not None
    assert (len(datamodule.train_set), len(datamodule.val_set)) == (54_000, 6_000)
    assert datamodule.test_set.labels.bincount().tolist() == [1000] * 10
