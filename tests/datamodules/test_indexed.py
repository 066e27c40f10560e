"""Each example carries its own position, however the data set below serves it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lit_methods.datamodules import ImageDataset, IndexedDataset, collate_images

IMAGES = torch.arange(9 * 4, dtype=torch.uint8).reshape(9, 1, 2, 2)
LABELS = torch.arange(9) % 3


class _Dicts(Dataset[dict[str, Any]]):
    def __init__(self, key: str = "label") -> None:
        self.key = key

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {self.key: LABELS[index]}


class _Bare(Dataset[Tensor]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        return LABELS[index]


class _Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from LABELS


@pytest.mark.parametrize("batched", [False, True])
def test_tuple_ends_in_the_position(batched: bool) -> None:
    below = ImageDataset(IMAGES, LABELS) if batched else TensorDataset(IMAGES / 255, LABELS)
    dataset = IndexedDataset(below)
    assert len(dataset) == 9
    torch.testing.assert_close(dataset[4], (IMAGES[4] / 255, LABELS[4], 4))
    seen = []
    for images, labels, index in DataLoader(dataset, batch_size=4, shuffle=True, collate_fn=collate_images):
        assert index.dtype == torch.int64
        torch.testing.assert_close(images, IMAGES[index] / 255)
        assert torch.equal(labels, LABELS[index])
        seen += index.tolist()
    assert sorted(seen) == list(range(9))
    assert seen != list(range(9))


def test_dict_gets_the_key_index() -> None:
    dataset = IndexedDataset(_Dicts())
    assert dataset[5] == {"label": 2, "index": 5}
    batch = next(iter(DataLoader(dataset, batch_size=9)))
    assert torch.equal(batch["index"], torch.arange(9))
    assert torch.equal(batch["label"], LABELS)


def test_position_is_the_one_in_the_wrapped_data_set() -> None:
    inner = IndexedDataset(Subset(TensorDataset(LABELS), [7, 2]))
    outer = Subset(IndexedDataset(TensorDataset(LABELS)), [7, 2])
    assert [inner[0][-1], inner[1][-1]] == [0, 1]
    assert [outer[0][-1], outer[1][-1]] == [7, 2]


def test_wrapped_example_is_not_changed() -> None:
    examples = [{"label": 1}]
    assert IndexedDataset(examples)[0] == {"label": 1, "index": 0}
    assert examples == [{"label": 1}]


def test_what_has_no_position_or_no_place_for_one_is_refused() -> None:
    with pytest.raises(TypeError, match="dataset=_Stream has no positions; pass a map-style data set"):
        IndexedDataset(_Stream())
    with pytest.raises(TypeError, match="Examples are Tensor; IndexedDataset takes tuples and dicts"):
        IndexedDataset(_Bare())[0]
    with pytest.raises(ValueError, match="a key 'index' already; rename it"):
        IndexedDataset(_Dicts("index"))[0]
