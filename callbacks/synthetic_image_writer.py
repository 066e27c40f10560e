"""Predicted images as files, written so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lit_methods.errors import check_lightning, check_rising, check_strategy

_COLUMNS = ("file", "index", "label", "strength")
_NEEDED = ("images", "label", "index")


class SyntheticImageWriter(BasePredictionWriter):
    """Writes the images that `predict` makes into one folder per class, with a table of where each comes from.

    Fits any module whose `predict_step` takes batches `(images, index, ...)` and returns `images` `(B, C, H, W)`,
    `label` and `index` `(B,)`, and perhaps `strength` `(B,)`, as a dict. The folder holds `settings.json`,
    `<class>/<index>.png`, one table per batch under `shards/`, and after the last batch `metadata.csv` with a row per
    image. What is already there is not predicted again: its rows are taken out of the batch.

    The settings are the `prediction_settings` of the module, or else its plain hyperparameters, and those of the
    datamodule if it has any: `OpenSetDataModule` gives a digest of its pool.

    Predictions are not collected by the Trainer, so that memory does not grow with their number.

    Args:
        output_dir: The folder; a new one, or one of the same settings.
        value_range: Lower and upper end of the pixels, written as 0 and 255; the module's
            `prediction_settings["value_range"]` wins if there is one.
        class_names: Names of the class folders; None for the numbers.
        keep_predictions: Whether `trainer.predict` returns the predictions, too.

    Guarantees:
        - No file is ever half-written under its final name: each is written aside and renamed.
        - An image is in a table only if its file is there.
        - A resumed run ends with the files of an uninterrupted one.
        - A folder of other settings, or of another pool of `OpenSetDataModule`, is refused before anything is
          predicted.

    Raises:
        ValueError: If `value_range` does not rise, or two classes would share a folder.
        TypeError: If `class_names` is no list of strings.
    """

    def __init__(
        self,
        output_dir: str | Path,
        value_range: tuple[float, float] = (0.0, 1.0),
        class_names: Sequence[str] | None = None,
        keep_predictions: bool = False,
    ) -> None:
        super().__init__("batch")
        check_rising("value_range", value_range)
        if class_names is not None:
            _check_names(class_names)
        self.output_dir = Path(output_dir)
        self.value_range = value_range
        self.class_names = None if class_names is None else tuple(class_names)
        self.keep_predictions = keep_predictions
        self._range = value_range
        self._written: set[int] = set()
        self._shard = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a module of another Lightning, and strategies that shard.

        Raises:
            MisconfigurationException: If the strategy is one of them.
        """
        check_lightning(pl_module)
        if stage == "predict":
            check_strategy(trainer, "SyntheticImageWriter skips what is written, where other processes would wait")

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a folder of other settings, reads what is there, and lets `predict_step` skip it.

        Not before: only now the checkpoint is loaded, and the module has had its say.

        Raises:
            ValueError: If the folder is of other settings, or there are too few `class_names`.
        """
        if cast(Any, trainer).fast_dev_run:
            return
        settings = _settings(pl_module) | getattr(cast(Any, trainer).datamodule, "prediction_settings", {})
        self._range = tuple(settings.get("value_range", self.value_range))
        settings["value_range"] = list(self._range)
        known = getattr(pl_module, "num_classes", None)
        if self.class_names is not None and isinstance(known, int) and len(self.class_names) < known:
            raise ValueError(
                f"class_names={self.class_names} are {len(self.class_names)} names, but {type(pl_module).__name__} has"
                f" num_classes={known}; name them all."
            )
        if trainer.is_global_zero:
            self._claim(settings)
        trainer.strategy.barrier("synthetic_image_writer")
        self._written = {int(row["index"]) for row in self._rows()}
        self._shard = len(list(self._shards.glob(f"{trainer.global_rank:05d}-*.csv")))
        trainer.predict_loop.return_predictions = self.keep_predictions
        pl_module.predict_step = self._skipping(pl_module.predict_step)  # type: ignore[method-assign]  # put back when the run ends

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the images of one batch, then their table.

        Raises:
            MisconfigurationException: If `predict_step` returns no images, labels or indices.
        """
        if prediction == {} or cast(Any, trainer).fast_dev_run:
            return
        missing = [name for name in _NEEDED if not isinstance(prediction, dict) or name not in prediction]
        if missing:
            raise MisconfigurationException(
                f"predict_step of {type(pl_module).__name__} returns no {missing}; SyntheticImageWriter needs a "
                f"dict with {list(_NEEDED)}."
            )
        low, high = self._range
        pixels = (
            ((prediction["images"].float() - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
        )
        strengths = prediction.get("strength")
        rows = []
        labels, index = prediction["label"].tolist(), prediction["index"].tolist()
        for i, (image, label, position) in enumerate(zip(pixels, labels, index, strict=True)):
            name = f"{self._folder_of(label)}/{position:08d}.png"
            _write_image(self.output_dir / name, image)
            rows.append((name, position, label, "" if strengths is None else f"{float(strengths[i]):g}"))
        _write_table(self._shards / f"{trainer.global_rank:05d}-{self._shard:06d}.csv", rows)
        self._shard += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins the tables of all processes into one."""
        if cast(Any, trainer).fast_dev_run:
            return
        trainer.strategy.barrier("synthetic_image_writer")
        if trainer.is_global_zero:
            rows = sorted(self._rows(), key=lambda row: int(row["index"]))
            _write_table(self.output_dir / "metadata.csv", [[row[name] for name in _COLUMNS] for row in rows])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the module as it was found."""
        vars(pl_module).pop("predict_step", None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the module as it was found."""
        self.teardown(trainer, pl_module, "predict")

    @property
    def _shards(self) -> Path:
        return self.output_dir / "shards"

    def _folder_of(self, label: int) -> str:
        if self.class_names is None:
            return str(label)
        if not 0 <= label < len(self.class_names):
            raise ValueError(
                f"class_names has {len(self.class_names)} names, but there is a label {label}; name them all."
            )
        return self.class_names[label]

    def _claim(self, settings: dict[str, Any]) -> None:
        path = self.output_dir / "settings.json"
        self._shards.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            if any(self._shards.iterdir()):
                raise ValueError(f"output_dir={self.output_dir} has images but no settings.json; take another folder.")
            _write(path, json.dumps(settings, indent=1, sort_keys=True).encode())
            return
        found = json.loads(path.read_text())
        if other := sorted(key for key in found | settings if found.get(key) != settings.get(key)):
            said = ", ".join(f"{key}: {found.get(key)} there, {settings.get(key)} here" for key in other)
            raise ValueError(
                f"output_dir={self.output_dir} holds images of other settings ({said}); take another folder, or "
                "delete it."
            )

    def _rows(self) -> list[dict[str, str]]:
        rows = []
        for path in sorted(self._shards.glob("*.csv")):
            with path.open(newline="") as file:
                rows += list(csv.DictReader(file))
        return rows

    def _skipping(self, predict_step: Callable[..., Any]) -> Callable[..., Any]:
        def step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._written:
                return predict_step(batch, *args, **kwargs)
            due = torch.tensor([position not in self._written for position in batch[1].tolist()])
            if not bool(due.any()):
                return {}
            return predict_step(_take(batch, due), *args, **kwargs)

        return step


def _check_names(class_names: Sequence[str]) -> None:
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise TypeError(f"class_names={class_names!r} must be a list with the name of each class.")
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"class_names={tuple(class_names)} must differ: each class has a folder of its own.")
    outside = [name for name in class_names if name in ("", ".", "..", "shards") or "/" in name or os.sep in name]
    if outside:
        raise ValueError(f"class_names={tuple(class_names)} must be names of folders, which {outside} are not.")


def _take(batch: Any, due: Tensor) -> Any:
    return apply_to_collection(batch, Tensor, lambda tensor: tensor[due.to(tensor.device)])


def _settings(pl_module: LightningModule) -> dict[str, Any]:
    settings = getattr(pl_module, "prediction_settings", None)
    if settings is None:
        settings = {
            key: value for key, value in pl_module.hparams.items() if isinstance(value, str | int | float | None)
        }
    return dict(cast(dict[str, Any], settings))


def _write_image(path: Path, image: Tensor) -> None:
    """Writes an image `(C, H, W)` of bytes as PNG."""
    from PIL import Image  # here, because only prediction needs it

    pixels = image.movedim(0, -1).numpy()
    content = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(content, "PNG")
    _write(path, content.getvalue())


def _write_table(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    content = StringIO(newline="")
    csv.writer(content).writerows([_COLUMNS, *rows])
    _write(path, content.getvalue().encode())


def _write(path: Path, content: bytes) -> None:
    """Writes a file aside and renames it, so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            said = f"{error.strerror}; every file that is there is whole: free some and run the same command again"
            raise OSError(error.errno, said, str(path)) from None
        raise
