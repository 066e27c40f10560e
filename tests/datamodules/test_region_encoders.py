import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_methods.datamodules import DatasetNotFoundError, visual_genome
from lit_methods.datamodules.region_encoders import CropEncoder, PooledEncoder, match_boxes
from lit_methods.datamodules.visual_genome import coco_ids, read_objects


def test_crops_are_what_the_boxes_hold() -> None:
    pictures, boxes = torch.rand(2, 3, 16, 12), torch.tensor([[[0, 0, 6, 6], [2, 4, 8, 10]], [[6, 10, 12, 16]] * 2])
    found = CropEncoder(nn.Flatten(), size=6, batch_size=3)(pictures, boxes.float())
    assert found.shape == (2, 2, 108)
    for b in range(2):
        for r in range(2):
            left, top, right, bottom = boxes[b, r].tolist()
            torch.testing.assert_close(found[b, r].view(3, 6, 6), pictures[b, :, top:bottom, left:right])
    pooled = CropEncoder(nn.Identity(), size=6)(pictures, boxes.float())
    torch.testing.assert_close(pooled[0, 1], pictures[0, :, 4:10, 2:8].mean(dim=(1, 2)))


def test_pooled_features_are_means_under_the_boxes() -> None:
    pictures = torch.rand(2, 3, 8, 12)
    boxes = torch.tensor([[[0, 0, 12, 8], [2, 4, 6, 8]], [[6, 0, 12, 4], [8, 2, 10, 4]]]).float()
    found = PooledEncoder(nn.Identity(), samples=24)(pictures, boxes)
    for b in range(2):
        for r in range(2):
            left, top, right, bottom = boxes[b, r].long().tolist()
            inner = pictures[b, :, top:bottom, left:right].mean(dim=(1, 2))
            torch.testing.assert_close(found[b, r], inner, rtol=0, atol=0.1)
    ramp = torch.arange(12.0).expand(1, 3, 8, 12)
    place = PooledEncoder(nn.Identity())(ramp, torch.tensor([[[2.0, 1, 6, 5]]]))
    torch.testing.assert_close(place, torch.full((1, 1, 3), 3.5))
    halved = PooledEncoder(nn.AvgPool2d(2))(ramp, torch.tensor([[[4.0, 2, 8, 6]]]))
    torch.testing.assert_close(halved, torch.full((1, 1, 3), 5.5))


def test_detector_queries_are_matched_by_overlap() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [10, 10, 14, 14], [0, 0, 2, 2]])
    queries = torch.tensor([[10.0, 10, 14, 13], [0, 0, 4, 5], [100, 100, 101, 101]])
    assert match_boxes(boxes, queries).tolist() == [1, 0, -1]
    assert match_boxes(boxes, queries, 0.79).tolist() == [1, -1, -1]


def test_objects_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visual_genome, "_CHUNK", 7)
    box = {"x": 1, "y": 2, "w": 3, "h": 4, "names": ["white shirt", "shirt"]}
    content = [
        {"image_id": 5, "objects": [box, {**box, "names": []}, {**box, "names": ["man"], "x": 0}]},
        {"image_id": 6, "objects": []},
        {"image_id": 7, "objects": [{**box, "names": ['a ] } " tree']}]},
    ]
    path = tmp_path / "objects.json"
    path.write_text(json.dumps(content, indent=1))
    found = list(read_objects(path))
    assert [one.image_id for one in found] == [5, 7]
    assert found[0].names == ["white shirt", "man"]
    assert found[0].boxes.tolist() == [[1, 2, 4, 6], [0, 2, 3, 6]]
    assert found[1].names == ['a ] } " tree']
    path.write_text(json.dumps(content)[:-30])
    with pytest.raises(ValueError, match="is cut short"):
        list(read_objects(path))
    path.write_text('[{"image_id": 1}]')
    with pytest.raises(ValueError, match=r"is no objects\.json"):
        list(read_objects(path))
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no JSON list"):
        list(read_objects(path))
    path.write_text('[{"image_id": 1, "coco_id": 9}, {"image_id": 2, "coco_id": null}]')
    assert coco_ids(path) == {1: 9}
    with pytest.raises(DatasetNotFoundError, match=r"objects\.json"):
        list(read_objects(tmp_path / "none" / "objects.json"))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"Box 1 of picture 0, \[3.0, 3.0, 3.0, 5.0\], has no area"):
        CropEncoder(nn.Identity(), 4)(torch.rand(1, 3, 8, 8), torch.tensor([[[0.0, 0, 2, 2], [3, 3, 3, 5]]]))
    with pytest.raises(ValueError, match="needs a feature map"):
        PooledEncoder(nn.Flatten())(torch.rand(1, 3, 8, 8), torch.tensor([[[0.0, 0, 2, 2]]]))
    with pytest.raises(ValueError, match="size=0"):
        CropEncoder(nn.Identity(), 0)
    with pytest.raises(ValueError, match="samples=0"):
        PooledEncoder(nn.Identity(), 0)
