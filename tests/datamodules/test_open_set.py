"""Open-set splits: disjoint parts, the promised mismatch, the six-animal protocol, and batches in step (card 8.11)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lit_methods.datamodules import (
    DatasetNotFoundError,
    DigitsDataModule,
    ImageFolderDataModule,
    OpenSetDataModule,
    OpenSetSplit,
)
from lit_methods.datamodules.images import ImageDataModule, Split
from lit_methods.datamodules.open_set_split import SIX_ANIMAL_CLASSES, SIX_ANIMAL_UNLABELED
from lit_methods.datamodules.repeating_sampler import RepeatingSampler

LABELS = torch.arange(10).repeat(60)
DIGITS = {"known_classes": range(5), "labels_per_class": 10, "val_per_class": 5}


class Numbered(ImageDataModule):
    """Ten classes of 1x2x2 images; an image's bytes are its part and its position."""

    class_names = tuple("abcdefghij")
    image_shape = (1, 2, 2)

    def __init__(self, per_class: int = 20, own_validation: bool = False, first: int = 0) -> None:
        super().__init__(value_range=(0.0, 255.0))
        self.per_class, self.own_validation, self.first = per_class, own_validation, first

    def read(self, split: Split) -> tuple[Tensor, Tensor] | None:
        if split == "validation" and not self.own_validation:
            return None
        labels = torch.arange(10).repeat(self.per_class)
        part = {"train": 0, "validation": 1, "test": 2}[split] + self.first
        images = torch.full((len(labels), 1, 2, 2), part, dtype=torch.uint8)
        images[:, 0, 0, 0] = torch.arange(len(labels), dtype=torch.uint8)
        return images, labels


def _ready(**arguments: object) -> OpenSetDataModule:
    settings = {"source": Numbered(), "known_classes": [3, 1], "labels_per_class": 4} | arguments
    data = OpenSetDataModule(**settings)
    data.setup()
    return data


def _positions(images: Tensor) -> set[int]:
    return set(images[:, 0, 0, 0].int().tolist())


@pytest.mark.parametrize("val_per_class", [0, 3])
def test_parts_are_disjoint_and_make_up_the_training_images(val_per_class: int) -> None:
    split = OpenSetSplit.make(LABELS, [7, 2, 5], 4, val_per_class=val_per_class)
    parts = [set(part.tolist()) for part in (split.labeled, split.unlabeled, split.val)]
    assert [len(part) for part in parts] == [12, 600 - 12 - 3 * val_per_class, 3 * val_per_class]
    assert set.union(*parts) == set(range(600))
    assert torch.bincount(LABELS[split.labeled], minlength=10).tolist() == [0, 0, 4, 0, 0, 4, 0, 4, 0, 0]


@pytest.mark.parametrize("mismatch", SIX_ANIMAL_UNLABELED)
def test_six_animal_protocol(mismatch: float) -> None:
    labels = torch.arange(10).repeat(5000)
    split = OpenSetSplit.make(
        labels, SIX_ANIMAL_CLASSES, 400, SIX_ANIMAL_UNLABELED[mismatch], unlabeled_per_class=4100, val_per_class=500
    )
    assert (len(split.labeled), len(split.val), len(split.unlabeled)) == (2400, 3000, 16400)
    assert split.prior(labels) == pytest.approx(1 - mismatch, abs=1e-6)
    counts = torch.bincount(labels[split.unlabeled], minlength=10)
    assert set(counts.nonzero().flatten().tolist()) == set(SIX_ANIMAL_UNLABELED[mismatch])
    assert set(counts[counts > 0].tolist()) == {4100}


@pytest.mark.parametrize("mismatch", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_mismatch_by_fraction_is_met_by_as_many_images_as_there_are(mismatch: float) -> None:
    split = OpenSetSplit.make(LABELS, [0, 1, 2, 3], 10, mismatch=mismatch)
    known, unknown = 4 * 50, 6 * 60
    by_known = known / (1 - mismatch) if mismatch < 1 else 600
    expected = min(by_known, unknown / mismatch if mismatch > 0 else 600)
    assert len(split.unlabeled) == int(expected)
    assert split.prior(LABELS) == pytest.approx(1 - mismatch, abs=1 / expected)
    assert len(split.unlabeled.unique()) == len(split.unlabeled)


def test_labelled_images_can_be_in_the_pool_too() -> None:
    split = OpenSetSplit.make(LABELS, [0, 1], 5, include_labeled=True)
    assert set(split.labeled.tolist()) <= set(split.unlabeled.tolist())


def test_split_depends_on_its_seed_alone_and_survives_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = OpenSetSplit.make(LABELS, [0, 1], 5)
    torch.manual_seed(2)
    assert torch.equal(OpenSetSplit.make(LABELS, [0, 1], 5).labeled, first.labeled)
    assert not torch.equal(OpenSetSplit.make(LABELS, [0, 1], 5, seed=1).labeled, first.labeled)
    first.save(tmp_path / "deep" / "split.json")
    second = OpenSetSplit.load(tmp_path / "deep" / "split.json", LABELS)
    for name in ("labeled", "unlabeled", "val"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["split.json"]
    with pytest.raises(ValueError, match="was written for other data"):
        OpenSetSplit.load(tmp_path / "deep" / "split.json", LABELS[1:])


def test_datamodule_reads_its_split_file_again(tmp_path: Path) -> None:
    first = _ready(split_file=tmp_path / "split.json", split_seed=3)
    again = _ready(split_file=tmp_path / "split.json", split_seed=4)
    assert torch.equal(again.split.labeled, first.split.labeled)
    with pytest.raises(ValueError, match=r"has the classes \[3, 1\], not known_classes=\[1, 3\]"):
        _ready(split_file=tmp_path / "split.json", known_classes=[1, 3])


def test_labels_follow_the_order_of_known_classes_in_every_part() -> None:
    data = _ready(val_per_class=2)
    train = Numbered().read("train")[1]
    for part in (data.labeled_set, data.val_set):
        positions = part.images[:, 0, 0, 0].long()
        assert torch.equal(part.labels, (train[positions] == 1).long())
    assert data.class_names == ("d", "b")
    assert torch.bincount(data.test_set.labels).tolist() == [20, 20]
    assert set(data.test_set.images[:, 0, 1, 1].tolist()) == {2}


def test_truth_of_the_pool_and_prior() -> None:
    data = _ready()
    train = Numbered().read("train")[1]
    positions = data.unlabeled_set.images.images[:, 0, 0, 0].long()
    assert torch.equal(data.unlabeled_set.known, torch.isin(train[positions], torch.tensor([1, 3])).long())
    assert data.prior == pytest.approx(32 / 192)
    assert int(data.unlabeled_set.images.labels.abs().max()) == 0, "the pool must not give labels away"


def test_own_validation_part_is_used() -> None:
    data = _ready(source=Numbered(own_validation=True))
    assert set(data.val_set.images[:, 0, 1, 1].tolist()) == {1}
    assert len(data.val_set) == 40
    assert _ready().val_set is None
    assert _ready().val_dataloader() == []


def test_second_source_joins_the_pool_as_unknown() -> None:
    data = _ready(extra_unlabeled=Numbered(5, first=7))
    assert len(data.unlabeled_set) == 192 + 50
    assert data.unlabeled_set.known[192:].tolist() == [0] * 50
    assert set(data.unlabeled_set.images.images[192:, 0, 1, 1].tolist()) == {7}


def test_training_batches_keep_in_step_and_small_sets_repeat() -> None:
    data = _ready(batch_size=10, unlabeled_ratio=3, steps_per_epoch=7)
    batches = [batch for batch, _, _ in data.train_dataloader()]
    assert len(batches) == 7
    seen = torch.zeros(8)
    for batch in batches:
        images, labels = batch["labeled"]
        pool, index, known = batch["unlabeled"]
        assert (len(images), len(pool)) == (10, 30)
        assert torch.equal(data.unlabeled_set.images[int(index[0])][0], pool[0])
        assert torch.equal(known, data.unlabeled_set.known[index])
        order = {int(p): i for i, p in enumerate(data.labeled_set.images[:, 0, 0, 0])}
        for image, label in zip(images, labels, strict=True):
            place = order[int(image[0, 0, 0])]
            assert data.labeled_set.labels[place] == label
            seen[place] += 1
    assert seen.max() - seen.min() <= 1


def test_an_epoch_is_one_pass_through_the_pool_by_default() -> None:
    data = _ready(batch_size=8, unlabeled_ratio=3)
    batches = [batch["unlabeled"][1] for batch, _, _ in data.train_dataloader()]
    assert len(batches) == 8
    assert set(torch.cat(batches).tolist()) == set(range(192))


def test_pool_is_predicted_in_order_and_validated_on_request() -> None:
    data = _ready(val_per_class=2, evaluate_unlabeled=True, batch_size=50)
    assert torch.cat([index for _, index, _ in data.predict_dataloader()]).tolist() == list(range(188))
    heldout, pool = data.val_dataloader()
    assert len(next(iter(heldout))) == 2
    assert len(next(iter(pool))) == 3
    assert len(_ready(val_per_class=2).val_dataloader()) == 1


def test_order_depends_on_seed_and_epoch_and_is_shared_out() -> None:
    torch.manual_seed(5)
    whole = RepeatingSampler(10, 24, seed=3)
    first = list(whole)
    assert sorted(first[:10]) == sorted(first[10:20]) == list(range(10))
    assert first == list(RepeatingSampler(10, 24, seed=3))
    whole.set_epoch(1)
    assert list(whole) != first
    shares = [list(RepeatingSampler(10, 12, 3, num_replicas=2, rank=rank)) for rank in range(2)]
    assert [x for pair in zip(*shares, strict=True) for x in pair] == first


def _write_synthetic(folder: Path, size: int = 2, labels: tuple[int, ...] = (0, 1, 1)) -> None:
    rows = ["file,index,label,strength"]
    for index, label in enumerate(labels):
        Image.fromarray(np.full((size, size), 100 + index, np.uint8)).save(folder / f"{index}.png")
        rows.append(f"{index}.png,{index},{label},0.6")
    (folder / "metadata.csv").write_text("\n".join(rows))


@pytest.mark.parametrize("role", ["unlabeled", "labeled"])
def test_synthetic_images_take_the_place_of_the_pool_or_stand_beside_the_labels(role: str, tmp_path: Path) -> None:
    _write_synthetic(tmp_path)
    data = _ready(synthetic_dir=tmp_path, synthetic_as=role, batch_size=3, unlabeled_ratio=1)
    batch, _, _ = next(iter(data.train_dataloader()))
    if role == "labeled":
        images, labels = batch["synthetic"]
        assert {(int(i[0, 0, 0]), int(y)) for i, y in zip(images, labels, strict=True)} == {
            (100, 0),
            (101, 1),
            (102, 1),
        }
    else:
        images, _, known = batch["unlabeled"]
        assert set(images[:, 0, 0, 0].int().tolist()) == {100, 101, 102}
        assert known.tolist() == [-1] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"known_classes": [3]}, r"the number of known_classes=1 must be at least 2"),
        ({"known_classes": [3, 11]}, r"known_classes=\[3, 11\]: the data have no class \[11\]"),
        ({"known_classes": [3, 3]}, r"known_classes=\[3, 3\] must name at least one class, and none twice"),
        ({"labels_per_class": 0}, "labels_per_class=0 must be at least 1"),
        ({"labels_per_class": 25}, "labels_per_class=25 and val_per_class=0 need more than the 20 images of class 1"),
        ({"labels_per_class": 20, "unlabeled_classes": [3]}, "leave no unlabelled image"),
        ({"mismatch": 1.5}, r"mismatch=1\.5 must lie in \[0, 1\]"),
        ({"synthetic_as": "both"}, "synthetic_as='both' must be"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ready(**arguments)


def test_other_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"metadata\.csv"):
        _ready(synthetic_dir=tmp_path)
    _write_synthetic(tmp_path, size=3)
    with pytest.raises(ValueError, match=r"holds images \(1, 3, 3\), but the data are \(1, 2, 2\)"):
        _ready(synthetic_dir=tmp_path)
    _write_synthetic(tmp_path, labels=(0, 5))
    with pytest.raises(ValueError, match="has labels 0 to 5, but there are 2 known classes"):
        _ready(synthetic_dir=tmp_path)
    with pytest.raises(ValueError, match=r"extra_unlabeled has images \(1, 8, 8\), the source \(1, 2, 2\)"):
        _ready(extra_unlabeled=DigitsDataModule())


def test_filtered_pool_keeps_the_named_positions(tmp_path: Path) -> None:
    whole, path = _ready(), tmp_path / "kept.json"
    path.write_text(json.dumps({"pool": len(whole.unlabeled_set), "positions": [3, 5, 60]}))
    data = _ready(pool_file=path)
    expected = whole.unlabeled_set.__getitems__([3, 5, 60])
    images, index, known = data.unlabeled_set.__getitems__(range(3))
    assert torch.equal(images, expected[0])
    assert index.tolist() == [0, 1, 2]
    assert torch.equal(known, expected[2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pool": 7, "positions": [1]}, "is of a pool of 7 images, this one has 192"),
        ({"pool": 192, "positions": []}, "keeps no image of the pool"),
    ],
)
def test_other_filters_are_refused(content: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="selection_file"):
        _ready(pool_file=tmp_path / "kept.json")
    (tmp_path / "kept.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        _ready(pool_file=tmp_path / "kept.json")


def test_use_before_setup_is_refused() -> None:
    data = OpenSetDataModule(Numbered(), [0, 1], 2)
    for call in (data.train_dataloader, data.val_dataloader, data.test_dataloader, lambda: data.prior):
        with pytest.raises(RuntimeError, match="is not set up"):
            call()


def _folder(root: Path, modes: tuple[str, ...] = ("RGB",) * 4) -> Path:
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                shade = 50 * label + i
                picture = Image.new("RGB", (4, 3), (shade, 0, 0)).convert(modes[2 * label + i])
                picture.save(root / split / name / f"{i}.png")
    return root


def test_image_folder_is_a_source(tmp_path: Path) -> None:
    data = ImageFolderDataModule(_folder(tmp_path), val_fraction=0.5)
    data.setup()
    assert data.class_names == ("cat", "dog")
    images, labels = data.read("train")
    assert images.shape == (4, 3, 3, 4)
    assert images[:, 0, 0, 0].tolist() == [0, 1, 50, 51]
    assert labels.tolist() == [0, 0, 1, 1]
    assert data.read("validation") is None
    open_set = OpenSetDataModule(data, [0, 1], 1)
    open_set.setup()
    assert len(open_set.unlabeled_set) == 2


def test_image_folder_takes_mixed_modes_and_refuses_mixed_sizes(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ("L", "RGB", "RGBA", "P"))
    assert ImageFolderDataModule(folder, mode="RGB").read("train")[0].shape == (4, 3, 3, 4)
    Image.new("RGB", (5, 5)).save(folder / "train" / "dog" / "9.png")
    with pytest.raises(ValueError, match=r"9\.png is \(3, 5, 5\).*pass image_size="):
        ImageFolderDataModule(folder, mode="RGB").read("train")
    assert ImageFolderDataModule(folder, (6, 7)).read("train")[0].shape == (5, 1, 6, 7)
    with pytest.raises(DatasetNotFoundError, match="nowhere"):
        ImageFolderDataModule(tmp_path / "nowhere").read("train")
