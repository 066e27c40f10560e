import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_methods.datamodules import DatasetNotFoundError, DigitScenesDataModule, ImageTextDataModule
from lit_methods.datamodules.region_files import Hdf5Regions, NpzRegions, TsvRegions, open_regions
from lit_methods.datamodules.regions import ArrayRegions, RegionSubset
from lit_methods.datamodules.retrieval_sets import RetrievalSet

FEATURES = np.random.default_rng(0).random((6, 3, 8)).astype(np.float32)
BOXES = np.random.default_rng(1).random((6, 3, 4)).astype(np.float32)
CAPTIONS = [f"caption {j}" for j in range(12)]


def _encoded(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, np.float32).tobytes()).decode()


def _tsv(folder: Path, lxmert: bool = False) -> Path:
    lines = []
    for i in range(6):
        count = 3 - i % 2
        middle = ["o", "c", "a", "d"] if lxmert else []
        columns = [
            f"im{i}",
            "640",
            "480",
            *middle,
            str(count),
            _encoded(BOXES[i, :count]),
            _encoded(FEATURES[i, :count]),
        ]
        lines.append("\t".join(columns) + "\n")
    path = folder / "regions.tsv"
    path.write_text("".join(lines))
    return path


def _npz(folder: Path) -> Path:
    (folder / "npz").mkdir()
    for i in range(6):
        count = 3 - i % 2
        np.savez(folder / "npz" / f"im{i}.npz", x=FEATURES[i, :count], bbox=BOXES[i, :count])
    return folder / "npz"


@pytest.mark.parametrize("make", [_tsv, lambda folder: _tsv(folder, lxmert=True), _npz], ids=["tsv", "lxmert", "npz"])
def test_formats_with_names_give_the_same_regions(make: Any, tmp_path: Path) -> None:
    found = open_regions(make(tmp_path))
    assert len(found) == 6
    assert found.ids == [f"im{i}" for i in range(6)]
    batch = found.read([5, 0])
    for row, i in enumerate([5, 0]):
        count = 3 - i % 2
        assert batch.mask[row].tolist() == [True] * count + [False] * (3 - count)
        assert np.array_equal(batch.regions[row, :count], FEATURES[i, :count])
        assert np.array_equal(batch.boxes[row, :count], BOXES[i, :count])
        assert (batch.regions[row, count:] == 0).all()


def test_array_is_memory_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FEATURES.astype(np.float16))
    found = open_regions(tmp_path / "x.npy")
    assert isinstance(found, ArrayRegions)
    assert isinstance(found.features, np.memmap)
    batch = found.read([4, 4, 1])
    assert batch.regions.dtype == torch.float32
    assert np.array_equal(batch.regions, FEATURES.astype(np.float16)[[4, 4, 1]])
    assert batch.mask.all()


def test_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not a dependency")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["ctx"], file["image_bb"] = FEATURES, BOXES
    batch = Hdf5Regions(tmp_path / "x.h5").read([4, 1, 4])
    assert np.array_equal(batch.regions, FEATURES[[4, 1, 4]])
    assert np.array_equal(batch.boxes, BOXES[[4, 1, 4]])


def _precomp(folder: Path, features: np.ndarray = FEATURES, captions: list[str] = CAPTIONS) -> ImageTextDataModule:
    for split in ("train", "dev", "test"):
        np.save(folder / f"{split}_ims.npy", features)
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    return ImageTextDataModule(folder, captions_per_image=2, batch_size=4)


@pytest.mark.parametrize("repeated", [False, True])
def test_precomputed_splits(repeated: bool, tmp_path: Path) -> None:
    data = _precomp(tmp_path, FEATURES.repeat(2, axis=0) if repeated else FEATURES)
    data.setup("test")
    captions, images = (list(loader) for loader in data.test_dataloader())
    assert [text for batch in captions for text in batch["captions"]] == CAPTIONS
    assert torch.cat([batch["image"] for batch in captions]).tolist() == [j // 2 for j in range(12)]
    assert np.array_equal(torch.cat([batch["regions"] for batch in images]), FEATURES)
    assert [batch["index"].tolist() for batch in images] == [[0, 1, 2, 3], [4, 5]]
    assert ["regions" in next(iter(loader)) for loader in data.predict_dataloader()] == [True, False]


def test_first_images_with_their_captions(tmp_path: Path) -> None:
    _precomp(tmp_path)
    data = ImageTextDataModule(tmp_path, captions_per_image=2, num_test_images=2)
    data.setup("test")
    assert len(data.sets["test"].regions) == 2
    assert data.sets["test"].captions == CAPTIONS[:4]


def _karpathy(folder: Path) -> None:
    splits = ["test", "train", "restval", "val", "test", "train"]
    images = [
        {
            "filename": f"im{i}.jpg",
            "imgid": i,
            "split": split,
            "sentences": [{"raw": f" text {i} {j} "} for j in range(2 + i % 2)],
        }
        for i, split in enumerate(splits)
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": images}))


@pytest.mark.parametrize("regions", ["regions.tsv", "npz", "all.npy"])
def test_karpathy_splits_find_their_regions(regions: str, tmp_path: Path) -> None:
    _karpathy(tmp_path)
    _tsv(tmp_path)
    _npz(tmp_path)
    np.save(tmp_path / "all.npy", FEATURES)
    data = ImageTextDataModule(tmp_path, regions=regions, captions="dataset.json", captions_per_image=2)
    data.setup()
    test, train = data.sets["test"], data.sets["train"]
    assert test.captions == ["text 0 0", "text 0 1", "text 4 0", "text 4 1"]
    assert test.image.tolist() == [0, 0, 1, 1]
    assert np.array_equal(test.regions.read([0, 1]).regions, FEATURES[[0, 4]])
    assert train.image.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(train.regions.read([2]).regions[0, :2], FEATURES[5, :2])
    every = ImageTextDataModule(tmp_path, regions=regions, captions="dataset.json", captions_per_image=3)
    every.setup("fit")
    assert every.sets["train"].image.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


def test_training_pairs_nothing(tmp_path: Path) -> None:
    data = _precomp(tmp_path)
    data.setup("fit")
    batches = [batch for batch, _, _ in data.train_dataloader()]
    images = {int(i) for batch in batches for i in batch["images"]["index"]}
    texts = {text for batch in batches for text in batch["captions"]["captions"]}
    assert images == {0, 1, 2}
    assert texts == set(CAPTIONS[6:])
    assert all("image" not in batch["captions"] for batch in batches)
    rows = torch.cat([batch["regions"] for batch in data.region_dataloader()])
    assert np.array_equal(rows, FEATURES[:3])


def test_files_that_do_not_fit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIT_METHODS_DATA", raising=False)
    with pytest.raises(DatasetNotFoundError, match="Pass data_dir=, or set LIT_METHODS_DATA"):
        ImageTextDataModule().setup("test")
    with pytest.raises(DatasetNotFoundError, match=r"test_caps\.txt"):
        ImageTextDataModule(tmp_path).setup("test")
    with pytest.raises(ValueError, match="holds 4 images, but the captions speak of 6 with 2"):
        _precomp(tmp_path, FEATURES[:4]).setup("test")
    with pytest.raises(ValueError, match=r"holds 12 images, but"):
        _precomp(tmp_path, np.concatenate([FEATURES, FEATURES])).setup("test")
    with pytest.raises(ValueError, match="more regions than features, as if"):
        _precomp(tmp_path, FEATURES.transpose(0, 2, 1)).setup("test")
    with pytest.raises(ValueError, match="has 11 lines, no multiple of captions_per_image=2"):
        _precomp(tmp_path, captions=CAPTIONS[1:]).setup("test")
    np.save(tmp_path / "test_ims.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(ValueError, match="is pickled or cut short"):
        open_regions(tmp_path / "test_ims.npy")
    whole = tmp_path / "dev_ims.npy"
    whole.write_bytes(whole.read_bytes()[:-50])
    with pytest.raises(ValueError, match="is pickled or cut short"):
        open_regions(whole)
    _karpathy(tmp_path)
    path = _tsv(tmp_path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match="has no image im0"):
        ImageTextDataModule(tmp_path, regions="regions.tsv", captions="dataset.json").setup("test")
    path.write_text(path.read_text()[:-10])
    with pytest.raises(ValueError, match="line 5 is cut short"):
        TsvRegions(path)
    path.write_text("a\t1\t1\t9\tAAAA\tAAAA\na\t1\t1\t9\tAAAA\tAAAA\n")
    with pytest.raises(ValueError, match="image a comes twice"):
        TsvRegions(path)
    path.write_text("a\t1\t1\t9\tAAAA\tAAAA\n")
    with pytest.raises(ValueError, match="image a does not hold 9 boxes"):
        TsvRegions(path).read([0])
    npz = _npz(tmp_path)
    with pytest.raises(ValueError, match="no 'features'; pass key="):
        NpzRegions(npz, key="features").read([0])
    (npz / "im0.npz").write_bytes((npz / "im0.npz").read_bytes()[:99])
    with pytest.raises(ValueError, match=r"im0.npz"):
        NpzRegions(npz).read([0])
    (tmp_path / "dataset.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="cut short or no Karpathy"):
        ImageTextDataModule(tmp_path, regions="npz", captions="dataset.json").setup("test")


def test_bad_arguments_are_named() -> None:
    for options, message in (
        ({"captions_per_image": 0}, "captions_per_image=0"),
        ({"num_test_images": 0}, "num_test_images=0"),
        ({"captions": "x.csv"}, "must end in .txt or .json"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageTextDataModule(**options)
    for options, message in (
        ({"shift": 2}, "shift=2"),
        ({"num_train": 1}, "num_train=1 must be at least 2"),
        ({"num_regions": 10}, "num_regions=10"),
    ):
        with pytest.raises(ValueError, match=message):
            DigitScenesDataModule(**options)
    regions = ArrayRegions(FEATURES)
    with pytest.raises(ValueError, match="image 5 has no caption"):
        RetrievalSet(regions, CAPTIONS[:5], torch.arange(5))
    with pytest.raises(ValueError, match="name image 6 of 6"):
        RetrievalSet(regions, CAPTIONS[:7], torch.arange(7))
    with pytest.raises(ValueError, match="do not make a set"):
        RetrievalSet(regions, CAPTIONS, torch.arange(6))
    with pytest.raises(ValueError, match="reach from 0 to 6 of 6"):
        RegionSubset(regions, range(7))
    with pytest.raises(ValueError, match=r"pass \(N, R, D\)"):
        ArrayRegions(FEATURES[:, :0])
    with pytest.raises(RuntimeError, match=r"call setup\('test'\) first"):
        ImageTextDataModule().test_dataloader()


def test_scenes_are_drawn_by_their_seed_alone() -> None:
    first, again, other = (DigitScenesDataModule(8, 4, 4, 50, seed=seed) for seed in (0, 0, 1))
    torch.manual_seed(9)
    one, two, three = (data.read("test") for data in (first, again, other))
    assert one.captions == two.captions != three.captions
    assert torch.equal(one.regions.read(range(4)).regions, two.regions.read(range(4)).regions)
    (features, names), (same, _) = (next(iter(data.knowledge_dataloader())) for data in (first, again))
    assert torch.equal(features, same)
    assert features.shape == (50, 80)
    assert len(names) == 50
    assert first.picture("test", 3).shape == (3, 60, 60)
    assert one.captions != first.read("validation").captions
