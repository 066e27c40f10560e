"""The writer: whole files only, a true table, resume equal to no interruption, other settings refused."""

import csv
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lit_methods.callbacks import SyntheticImageWriter
from lit_methods.callbacks import synthetic_image_writer as home
from lit_methods.datamodules import DigitsDataModule, OpenSetDataModule
from lit_methods.datamodules.image_folder import read_synthetic
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Parts
from tests.gloo import GlooPool, ddp_trainer_kwargs
from tests.semi_supervised.toys import tiny_diffusion, toy_data


class Painter(LightningModule):
    """Paints each image in a shade of its index; remembers what it was asked for."""

    def __init__(self, tone: float = 1.0, channels: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.tone, self.channels, self.asked = tone, channels, []

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        index = batch[1]
        self.asked += index.tolist()
        images = (index / 20 * self.tone).view(-1, 1, 1, 1).expand(-1, self.channels, 3, 2)
        return {"images": images, "label": index % 3, "index": index, "strength": torch.full((len(index),), 0.25)}


class Pool(LightningDataModule):
    def __init__(self, batch_size: int = 4, size: int = 10) -> None:
        super().__init__()
        self.batch_size, self.size = batch_size, size

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.zeros(self.size, 1), torch.arange(self.size)), batch_size=self.batch_size)


def _predict(folder: Path, module: LightningModule | None = None, batch_size: int = 4, **kwargs: Any) -> Painter:
    module = module or Painter()
    writer = SyntheticImageWriter(folder, **kwargs)
    toy_trainer(Parts(module, [writer], Pool()), folder.parent).predict(module, datamodule=Pool(batch_size))
    return module


def _content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "shards"
    }


def _table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_and_table_are_what_was_predicted(tmp_path: Path) -> None:
    _predict(tmp_path / "out")
    rows = _table(tmp_path / "out")
    assert [int(row["index"]) for row in rows] == list(range(10))
    for row in rows:
        index = int(row["index"])
        assert row["file"] == f"{index % 3}/{index:08d}.png"
        assert (row["label"], row["strength"]) == (str(index % 3), "0.25")
        with Image.open(tmp_path / "out" / row["file"]) as picture:
            assert np.array(picture).tolist() == [[round(index / 20 * 255)] * 2] * 3
    assert json.loads((tmp_path / "out" / "settings.json").read_text()) == {
        "channels": 1,
        "tone": 1.0,
        "value_range": [0.0, 1.0],
    }


def test_colour_names_and_range(tmp_path: Path) -> None:
    _predict(tmp_path / "out", Painter(channels=3), value_range=(-1.0, 1.0), class_names=("a", "b", "c"))
    with Image.open(tmp_path / "out" / "b" / "00000004.png") as picture:
        assert picture.mode == "RGB"
        assert np.array(picture)[0, 0].tolist() == [round((0.2 + 1) / 2 * 255)] * 3
    with pytest.raises(ValueError, match="class_names has 2 names, but there is a label 2"):
        _predict(tmp_path / "other", class_names=("a", "b"))
    module = Painter()
    module.num_classes = 3
    with pytest.raises(ValueError, match=r"class_names=\('a', 'b'\) are 2 names, but Painter has num_classes=3"):
        _predict(tmp_path / "known", module, class_names=("a", "b"))
    assert module.asked == []


class _FullDisk:
    """Fails at a given write, part of the bytes written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
        self.left, self.write = fails_at, Path.write_bytes
        monkeypatch.setattr(Path, "write_bytes", lambda path, content: self(path, content))

    def __call__(self, path: Path, content: bytes) -> int:
        self.left -= 1
        if self.left < 0:
            self.write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.write(path, content)


@pytest.mark.parametrize("fails_at", [0, 3, 5, 6, 9, 13, 14])
def test_full_disk_leaves_whole_files_and_the_run_goes_on(
    fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _predict(tmp_path / "whole")
    module = Painter()
    with monkeypatch.context() as patch:
        _FullDisk(patch, fails_at)
        sentence = "No space left on device; every file that is there is whole: free some and run the same command"
        with pytest.raises(OSError, match=sentence) as raised:
            _predict(tmp_path / "out", module)
        assert raised.value.errno == errno.ENOSPC
    assert "predict_step" not in vars(module)
    for path in (tmp_path / "out").rglob("*.*"):
        assert not path.name.endswith(".part")
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
    done = {int(row["index"]) for path in (tmp_path / "out" / "shards").glob("*.csv") for row in _read(path)}
    again = _predict(tmp_path / "out", batch_size=3)
    assert sorted(again.asked) == sorted(set(range(10)) - done)
    assert _content(tmp_path / "out") == _content(tmp_path / "whole")


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_finished_folder_is_not_predicted_again(tmp_path: Path) -> None:
    _predict(tmp_path / "out")
    before = _content(tmp_path / "out")
    assert _predict(tmp_path / "out").asked == []
    assert _content(tmp_path / "out") == before


def test_folder_of_other_settings_is_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    _predict(tmp_path / "out")
    module = Painter(tone=0.5)
    with pytest.raises(ValueError, match=r"holds images of other settings \(tone: 1\.0 there, 0\.5 here\)"):
        _predict(tmp_path / "out", module)
    assert module.asked == []
    (tmp_path / "out" / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"has images but no settings\.json"):
        _predict(tmp_path / "out")


def test_another_pool_is_refused(tmp_path: Path) -> None:
    def predict(**arguments: Any) -> Painter:
        settings = {"labels_per_class": 10, "mismatch": 0.75, "batch_size": 512} | arguments
        value_range = settings.pop("value_range", (-1.0, 1.0))
        data = OpenSetDataModule(DigitsDataModule(value_range=value_range), range(5), **settings)
        module, writer = Painter(), SyntheticImageWriter(tmp_path / "out", value_range=(0.0, 100.0))
        toy_trainer(Parts(module, [writer], data), tmp_path).predict(module, datamodule=data)
        return module

    whole = len(predict().asked)
    before = _content(tmp_path / "out")
    assert len(_table(tmp_path / "out")) == whole > 800
    assert predict(batch_size=300, unlabeled_ratio=2, steps_per_epoch=3).asked == []
    for other in ({"split_seed": 1}, {"mismatch": 0.5}, {"labels_per_class": 9}, {"value_range": (0.0, 1.0)}):
        with pytest.raises(ValueError, match=r"holds images of other settings \(pool: \w{16} there, \w{16} here\)"):
            predict(**other)
    assert _content(tmp_path / "out") == before


def test_one_image_of_each_source_in_balanced_classes(tmp_path: Path) -> None:
    """Card section 8, item 11: as many as the pool has, and what comes back from the folder is what was predicted."""
    module, data = tiny_diffusion(), toy_data()
    writer = SyntheticImageWriter(tmp_path / "out", keep_predictions=True)
    made = toy_trainer(Parts(module, [writer], data), tmp_path).predict(module, datamodule=data)
    pictures, labels = read_synthetic(tmp_path / "out", (1, 4, 4))
    assert len(labels) == len(data.pool)
    assert torch.bincount(labels).tolist() == [48, 48]
    assert torch.equal(labels, torch.cat([part["label"] for part in made]))
    expected = (torch.cat([part["images"] for part in made]) + 1) / 2 * 255
    assert float((pictures - expected).abs().max()) <= 0.5 + 1e-4


def test_other_weights_are_other_settings(tmp_path: Path) -> None:
    module, data = tiny_diffusion(), toy_data()
    writer = SyntheticImageWriter(tmp_path / "out")
    toy_trainer(Parts(module, [writer], data), tmp_path).predict(module, datamodule=data)
    with torch.no_grad():
        next(module.ema.network.parameters()).add_(0.1)
    with pytest.raises(ValueError, match="weights: "):
        toy_trainer(Parts(module, [writer], data), tmp_path).predict(module, datamodule=data)


def test_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    trained, data = tiny_diffusion(), toy_data()
    trainer = toy_trainer(Parts(trained, [], data), tmp_path, max_epochs=1)
    trainer.fit(trained, datamodule=data)
    trainer.save_checkpoint(tmp_path / "trained.ckpt")

    def predict(folder: str, ckpt_path: Path | None) -> dict[str, Any]:
        module = tiny_diffusion()
        writer = SyntheticImageWriter(tmp_path / folder)
        toy_trainer(Parts(module, [writer], data), tmp_path).predict(module, datamodule=data, ckpt_path=ckpt_path)
        return json.loads((tmp_path / folder / "settings.json").read_text())

    before = predict("before", None)
    with pytest.raises(ValueError, match="weights: "):
        predict("before", tmp_path / "trained.ckpt")
    assert predict("after", tmp_path / "trained.ckpt")["weights"] == trained.prediction_settings["weights"]
    assert before["weights"] != trained.prediction_settings["weights"]
    images = [(tmp_path / folder / "0" / "00000001.png").read_bytes() for folder in ("before", "after")]
    assert images[0] != images[1]


def test_resumed_diffusion_writes_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = tiny_diffusion(), toy_data()
    folders = [tmp_path / "whole", tmp_path / "broken"]
    trainers = [toy_trainer(Parts(module, [SyntheticImageWriter(folder)], data), tmp_path) for folder in folders]
    trainers[0].predict(module, datamodule=data)
    with monkeypatch.context() as patch:
        _FullDisk(patch, 40)
        with pytest.raises(OSError, match="No space left"):
            trainers[1].predict(module, datamodule=data)
    toy_trainer(Parts(module, [SyntheticImageWriter(folders[1])], data), tmp_path).predict(module, datamodule=data)
    rows = [_table(folder) for folder in folders]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 96
    for row in rows[0]:
        a, b = (np.array(Image.open(folder / row["file"])).astype(int) for folder in folders)
        assert np.abs(a - b).max() <= 1, "another batch size may round another way"


def test_predictions_are_returned_only_on_request(tmp_path: Path) -> None:
    for keep in (False, True):
        module, writer = Painter(), SyntheticImageWriter(tmp_path / str(keep), keep_predictions=keep)
        found = toy_trainer(Parts(module, [writer], Pool()), tmp_path).predict(module, datamodule=Pool())
        assert bool(found) == keep


def test_fast_dev_run_leaves_no_file(tmp_path: Path) -> None:
    module, writer = Painter(), SyntheticImageWriter(tmp_path / "out")
    toy_trainer(Parts(module, [writer], Pool()), tmp_path, fast_dev_run=True).predict(module, datamodule=Pool())
    assert list(tmp_path.iterdir()) == []


def test_other_predictions_are_refused(tmp_path: Path) -> None:
    class Silent(Painter):
        def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return batch[0]

    with pytest.raises(
        MisconfigurationException, match=r"predict_step of Silent returns no \['images', 'label', 'index'\]"
    ):
        _predict(tmp_path / "out", Silent())
    with pytest.raises(ValueError, match=r"value_range=\(1\.0, 0\.0\) must rise"):
        SyntheticImageWriter(tmp_path, value_range=(1.0, 0.0))


def _write_with_others(rank: int, world_size: int, folder: Path) -> list[int]:
    module = Painter()
    trainer: Trainer = toy_trainer(
        Parts(module, [SyntheticImageWriter(folder)], Pool()), folder.parent, **ddp_trainer_kwargs()
    )
    trainer.predict(module, datamodule=Pool())
    return module.asked


@pytest.mark.ddp
def test_two_processes_write_what_one_writes(gloo: GlooPool, tmp_path: Path) -> None:
    _predict(tmp_path / "whole")
    shares = gloo.run(_write_with_others, tmp_path / "out")
    assert sorted(shares[0] + shares[1]) == list(range(10))
    assert _content(tmp_path / "out") == _content(tmp_path / "whole")
    assert len(list((tmp_path / "out" / "shards").glob("00001-*.csv"))) == 2


def test_write_is_the_only_way_to_a_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    write = home._write
    monkeypatch.setattr(home, "_write", lambda path, content: written.append(path) or write(path, content))
    _predict(tmp_path / "out")
    assert {path.relative_to(tmp_path / "out").as_posix() for path in written} >= set(_content(tmp_path / "out"))
