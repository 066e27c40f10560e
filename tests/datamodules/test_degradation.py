"""Low data, imbalance and noise: counts as asked, subsets by the seed, and the truth kept beside it."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_methods.datamodules import Degradation, DigitsDataModule, DocstringDataModule, ImageDataModule
from lit_methods.datamodules.splits import Split

LABELS = torch.arange(600) % 3


class _Numbered(ImageDataModule):
    """Example i of part p has the pixels (p, i // 256, i % 256), so that it can be told after the fact."""

    class_names = ("a", "b", "c")
    image_shape = (1, 1, 3)

    def read(self, split: Split) -> tuple[Tensor, Tensor] | None:
        number = torch.arange(600)
        part = torch.full_like(number, ("train", "validation", "test").index(split))
        pixels = torch.stack([part, number // 256, number % 256], dim=1)
        return pixels.to(torch.uint8).reshape(600, 1, 1, 3), LABELS


def _ready(**arguments: Any) -> _Numbered:
    data = _Numbered(degradation=Degradation(**arguments))
    data.setup()
    return data


def _numbers(part: Any) -> list[int]:
    pixels = part.images.reshape(-1, 3).int()
    return (pixels[:, 1] * 256 + pixels[:, 2]).tolist()


@pytest.mark.parametrize(
    ("arguments", "train", "val"),
    [
        ({}, [200, 200, 200], [200, 200, 200]),
        ({"train_per_class": 40, "val_per_class": 2}, [40, 40, 40], [2, 2, 2]),
        ({"train_per_class": [5, 200, 1], "val_per_class": [3, 1, 2]}, [5, 200, 1], [3, 1, 2]),
        ({"train_per_class": 150, "minority_rate": 0.1}, [15, 150, 150], [200, 200, 200]),
        ({"train_per_class": 199, "minority_rate": 0.05, "minority_class": 2}, [199, 199, 9], [200, 200, 200]),
        ({"classes": [2, 0], "train_per_class": 100, "minority_rate": 0.02}, [2, 100], [200, 200]),
    ],
)
def test_each_class_has_exactly_the_asked_number(arguments: dict[str, Any], train: list[int], val: list[int]) -> None:
    data = _ready(**arguments)
    assert data.train_set is not None
    assert data.val_set is not None
    assert data.test_set is not None
    assert data.train_set.labels.bincount().tolist() == train
    assert data.val_set.labels.bincount().tolist() == val
    assert data.test_set.labels.bincount().tolist() == [200] * len(train)
    for part in (data.train_set, data.val_set, data.test_set):
        numbers = _numbers(part)
        assert len(set(numbers)) == len(numbers)
        kept = arguments.get("classes", [0, 1, 2])
        assert [kept[label] for label in part.labels.tolist()] == [number % 3 for number in numbers]


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.1])
def test_minority_of_a_thousand_is_that_of_the_published_code(rate: float) -> None:
    degradation = Degradation(classes=[0, 1], train_per_class=1000, minority_rate=rate)
    _, labels = degradation.choose(torch.arange(5000) % 4, 2, "train")
    assert labels.bincount().tolist() == [int(1000 * rate), 1000]


def test_each_seed_has_its_own_subset_and_one_seed_the_same() -> None:
    def subsets(seed: int) -> tuple[list[int], list[int]]:
        data = _ready(train_per_class=30, val_per_class=30, seed=seed)
        return _numbers(data.train_set), _numbers(data.val_set)

    torch.manual_seed(1)
    first = subsets(4)
    torch.manual_seed(2)
    np.random.seed(2)
    assert subsets(4) == first
    other = subsets(5)
    assert other[0] != first[0]
    assert other[1] != first[1]
    assert first[0] != first[1]  # the two parts are numbered alike here, and yet are drawn on their own


def test_random_states_of_the_process_are_left_alone() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    _ready(train_per_class=30, label_noise=0.5)
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])


def test_a_smaller_subset_lies_inside_a_larger_one() -> None:
    small, large = _ready(train_per_class=[10, 20, 5]), _ready(train_per_class=50)
    assert set(_numbers(small.train_set)) < set(_numbers(large.train_set))


@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
def test_noise_redraws_its_share_and_the_truth_is_kept(noise: float) -> None:
    data = _ready(label_noise=noise)
    assert data.train_set is not None
    assert data.true_labels is not None
    assert data.corrupted is not None
    assert torch.equal(data.true_labels, LABELS)
    assert torch.equal(data.corrupted, data.train_set.labels != LABELS)
    assert int(data.corrupted.sum()) <= round(noise * 600)
    for part in (data.val_set, data.test_set):
        assert part is not None
        assert torch.equal(part.labels, LABELS)


def test_redrawn_labels_are_uniform_whatever_they_were() -> None:
    labels = torch.arange(30_000) % 3
    before = labels.clone()
    noisy = Degradation(label_noise=0.4, seed=1).redraw(labels, 3)
    assert torch.equal(labels, before)
    confusion = torch.zeros(3, 3)
    for truth, label in zip(labels.tolist(), noisy.tolist(), strict=True):
        confusion[truth, label] += 1
    expected = torch.full((3, 3), 0.4 * 10_000 / 3) + 0.6 * 10_000 * torch.eye(3)
    # four standard deviations of a count of redrawn labels: 4 · sqrt(4000 · 2/9)
    torch.testing.assert_close(confusion, expected, atol=120.0, rtol=0)


def test_exactly_the_share_is_redrawn() -> None:
    many = Degradation(label_noise=0.3).redraw(torch.full((1001,), -1), 5)
    assert int((many >= 0).sum()) == round(0.3 * 1001)
    assert set(many.tolist()) == {-1, 0, 1, 2, 3, 4}


def test_kept_classes_are_renumbered_with_their_names() -> None:
    data = _ready(classes=[2, 1])
    assert data.class_names == ("c", "b")
    assert data.num_classes == 2
    assert _Numbered.class_names == ("a", "b", "c")


def test_sizes_balance_and_noise_are_stated_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        data = _ready(train_per_class=[9, 20, 20], val_per_class=2, label_noise=0.5)
    assert data.corrupted is not None
    assert data.train_set is not None
    stated = "\n".join(caplog.messages)
    assert f"train 49 examples, labels {data.train_set.labels.bincount().tolist()}" in stated
    assert f", {int(data.corrupted.sum())} of them wrong; " in stated
    assert "val 6 examples, labels [2, 2, 2]" in stated


def test_validation_is_drawn_from_what_is_held_out() -> None:
    plain, few = DigitsDataModule(), DigitsDataModule(degradation=Degradation(train_per_class=40, val_per_class=5))
    plain.setup("fit")
    few.setup("fit")
    for whole, part, count in ((plain.train_set, few.train_set, 400), (plain.val_set, few.val_set, 50)):
        assert whole is not None
        assert part is not None
        assert len(part) == count
        rows = {(image.numpy().tobytes(), int(label)) for image, label in zip(whole.images, whole.labels, strict=True)}
        for image, label in zip(part.images, part.labels, strict=True):
            assert (image.numpy().tobytes(), int(label)) in rows


def test_images_and_texts_yield_the_position_in_training_only() -> None:
    images = DigitsDataModule(yield_index=True, degradation=Degradation(train_per_class=10, label_noise=0.5))
    images.setup("fit")
    assert images.train_set is not None
    batch = next(iter(images.train_dataloader()))
    assert torch.equal(batch[1], images.train_set.labels[batch[2]])
    assert torch.equal(batch[0], images.train_set.__getitems__(batch[2])[0])
    assert len(next(iter(images.val_dataloader()))) == 2
    texts = DocstringDataModule(20, yield_index=True)
    texts.setup("fit")
    assert texts.train_set is not None
    found = next(iter(texts.train_dataloader()))
    assert torch.equal(found["label"], texts.train_set.labels[found["index"]])
    assert "index" not in next(iter(texts.val_dataloader()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": [1]}, r"classes=\[1\] must be two or more different classes"),
        ({"classes": [1, 1]}, r"classes=\[1, 1\] must be two or more different classes"),
        ({"train_per_class": 0}, "train_per_class=0 must be at least 1 for each class"),
        ({"val_per_class": [1, 0]}, r"val_per_class=\[1, 0\] must be at least 1 for each class"),
        ({"val_per_class": []}, r"val_per_class=\[\] must be at least 1 for each class"),
        ({"minority_rate": 0.1}, "minority_rate=0.1 thins out one class .* instead of None"),
        ({"minority_rate": 0.1, "train_per_class": [4, 4]}, r"as one number instead of \[4, 4\]"),
        ({"minority_rate": 1.0, "train_per_class": 9}, r"minority_rate=1.0 must lie in \(0, 1\)"),
        ({"minority_rate": 0.1, "train_per_class": 9}, "leaves no example of the minority"),
        ({"minority_class": 1}, "minority_class=1 does nothing alone; pass minority_rate="),
        ({"label_noise": 1.1}, r"label_noise=1.1 must lie in \[0, 1\]"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
    ],
)
def test_arguments_without_meaning_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Degradation(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": [0, 3]}, r"classes=\[0, 3\]: \[3\] is outside of the classes 0 to 2"),
        ({"train_per_class": 201}, "train_per_class asks for 201 examples of class 0, but its train part has 200"),
        ({"val_per_class": [1, 1, 300]}, "val_per_class asks for 300 examples of class 2, .* raise val_fraction"),
        ({"train_per_class": [5, 5]}, r"train_per_class=\[5, 5\] must have one number for each of the 3 classes"),
        (
            {"train_per_class": 9, "minority_rate": 0.5, "minority_class": 3},
            "minority_class=3 must lie in 0 to 2",
        ),
    ],
)
def test_what_the_data_cannot_give_is_explained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ready(**arguments)


def test_validation_examples_that_nobody_holds_out_are_refused() -> None:
    data = DigitsDataModule(val_fraction=0.0, degradation=Degradation(val_per_class=2))
    with pytest.raises(ValueError, match=r"val_per_class=2 has nothing to choose from, .* val_fraction=0.0 holds none"):
        data.setup("fit")
