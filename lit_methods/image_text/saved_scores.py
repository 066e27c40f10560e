"""A matcher known by its scores alone, as a base to re-rank."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor

_NO_VALIDATION = "validation=None: there are no scores of the validation set. Pass its file, or run test alone."


class SavedScores(LightningModule):
    """Serves the scores of any model from `.npy` files, each `(I, T)`; it has nothing to train.

    Args:
        test: Scores of the test set.
        validation: Scores of the validation set; None where only the test set is evaluated.

    """

    def __init__(self, test: str | Path, validation: str | Path | None = None) -> None:
        super().__init__()
        self.files = {"test": Path(test), "validate": None if validation is None else Path(validation)}

    def setup(self, stage: str) -> None:
        """Looks at the files before anything runs.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is pickled or no matrix.
            MisconfigurationException: If the set that is evaluated has no file.
        """
        if stage == "validate" and self.files["validate"] is None:
            raise MisconfigurationException(_NO_VALIDATION)
        for path in self.files.values():
            if path is not None:
                _matrix(path)

    def scores(self) -> Tensor:
        """Scores `(I, T)` of the set that is evaluated, float32.

        Raises:
            MisconfigurationException: If that set has no file.
        """
        stage = "test" if self.trainer.testing else "validate"
        path = self.files[stage]
        if path is None:
            raise MisconfigurationException(_NO_VALIDATION)
        return torch.from_numpy(np.asarray(_matrix(path), np.float32))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Refuses: the scores are all there is."""
        raise MisconfigurationException("SavedScores has nothing to train: run test, or validate.")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refuses: the scores are known already."""
        raise MisconfigurationException("SavedScores has nothing to predict: run test, or validate.")

    def configure_optimizers(self) -> None:
        """Refuses: the scores are all there is."""
        raise MisconfigurationException("SavedScores has nothing to train: run test, or validate.")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Nothing: the scores are known."""

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Nothing: the scores are known."""


def _matrix(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"Scores not found: {path} is no file; save an array (I, T) there with numpy.save.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is pickled or cut short; save a plain float array (I, T): {error}") from error
    if array.ndim != 2:
        raise ValueError(f"{path} holds {array.shape}; save scores (I, T).")
    return array
