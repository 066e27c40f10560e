"""Digits: the split is a seeded, stratified partition and the batches are what they promise."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lit_methods.datamodules import DigitsDataModule, ImageDataset


def _ready(**arguments: object) -> DigitsDataModule:
    datamodule = DigitsDataModule(**arguments)
    datamodule.setup()
    return datamodule


def _parts(datamodule: DigitsDataModule) -> list[ImageDataset]:
    return [part for part in (datamodule.train_set, datamodule.val_set, datamodule.test_set) if part is not None]


@pytest.mark.parametrize("val_fraction", [0.0, 0.1, 0.5])
def test_parts_make_up_the_data_set_exactly(val_fraction: float) -> None:
    digits = load_digits()
    expected = Counter((row.tobytes(), label) for row, label in zip(digits.data, digits.target, strict=True))
    parts = _parts(_ready(val_fraction=val_fraction))
    found = Counter(
        (row.flatten().numpy().astype(np.float64).tobytes(), int(label))
        for part in parts
        for row, label in zip(part.images, part.labels, strict=True)
    )
    assert found == expected
    assert len(parts) == (3 if val_fraction else 2)


def test_every_part_has_the_classes_in_proportion() -> None:
    whole = np.bincount(load_digits().target) / 1797
    for part in _parts(_ready(val_fraction=0.2)):
        np.testing.assert_allclose(np.bincount(part.labels) / len(part), whole, atol=1.0 / len(part))


def test_split_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = _ready(split_seed=3)
    torch.manual_seed(2)
    np.random.seed(2)
    second, other = _ready(split_seed=3, batch_size=7), _ready(split_seed=4)
    for a, b in zip(_parts(first), _parts(second), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
    for a, b in zip(_parts(first), _parts(other), strict=True):
        assert not torch.equal(a.images, b.images)


def test_batches_have_the_promised_shapes_types_and_range() -> None:
    datamodule = _ready(batch_size=50, val_fraction=0.25)
    for loader in (
        datamodule.train_dataloader(),
        datamodule.val_dataloader(),
        datamodule.test_dataloader(),
        datamodule.predict_dataloader(),
    ):
        images, labels = next(iter(loader))
        assert images.shape == (50, *datamodule.image_shape)
        assert labels.shape == (50,)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert (images.min(), images.max()) == (0.0, 1.0)
    assert datamodule.num_classes == len(datamodule.class_names) == 10


def test_only_training_shuffles() -> None:
    datamodule = _ready(batch_size=2000)
    train, again = (next(iter(datamodule.train_dataloader()))[1] for _ in range(2))
    assert not torch.equal(train, again)
    assert torch.equal(train.sort().values, again.sort().values)
    for loader, part in (
        (datamodule.val_dataloader(), datamodule.val_set),
        (datamodule.test_dataloader(), datamodule.test_set),
    ):
        assert part is not None
        assert torch.equal(next(iter(loader))[1], part.labels)


def test_transform_and_drop_last_act_on_training_only() -> None:
    datamodule = _ready(batch_size=100, drop_last=True, train_transform=lambda image: image + 10)
    train = [len(labels) for _, labels in datamodule.train_dataloader()]
    test = [len(labels) for _, labels in datamodule.test_dataloader()]
    assert train == [100] * 12
    assert test == [100, 100, 100, 60]
    assert next(iter(datamodule.train_dataloader()))[0].min() >= 10
    assert next(iter(datamodule.val_dataloader()))[0].max() <= 1


def test_value_range_is_fixed_and_not_taken_from_the_data() -> None:
    plain, shifted = _ready(), _ready(value_range=(-1.0, 1.0))
    for a, b in zip(_parts(plain), _parts(shifted), strict=True):
        torch.testing.assert_close(b[5][0], 2 * a[5][0] - 1)
        torch.testing.assert_close(a[5][0], a.images[5] / 16)


def test_setup_loads_what_the_stage_needs_and_only_once() -> None:
    datamodule = DigitsDataModule()
    datamodule.setup("fit")
    assert datamodule.test_set is None
    train = datamodule.train_set
    datamodule.setup("fit")
    datamodule.setup("test")
    datamodule.setup()
    assert datamodule.train_set is train
    assert datamodule.test_set is not None


def test_without_held_out_part_there_is_no_validation_loader() -> None:
    assert _ready(val_fraction=0.0).val_dataloader() == []


def test_workers_serve_the_same_batches() -> None:
    alone, helped = _ready(), _ready(num_workers=1)
    for a, b in zip(alone.test_dataloader(), helped.test_dataloader(), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"])
def test_loader_before_setup_says_what_to_call(loader: str) -> None:
    with pytest.raises(RuntimeError, match=r"DigitsDataModule is not set up; call setup\('"):
        getattr(DigitsDataModule(), loader)()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"val_fraction": 1.0}, r"val_fraction=1.0 must lie in \[0, 1\)"),
        ({"val_fraction": -0.1}, r"val_fraction=-0.1 must lie in \[0, 1\)"),
        ({"num_workers": -1}, "num_workers=-1 must be at least 0"),
        ({"value_range": (1.0, 1.0)}, r"value_range=\(1.0, 1.0\) must rise"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(**arguments)


def test_a_fraction_too_small_for_the_classes_is_explained() -> None:
    with pytest.raises(ValueError, match=r"fraction=0\.001 cannot split 1437 labels by class"):
        _ready(val_fraction=0.001)
