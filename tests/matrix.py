"""Every public LightningModule, callback and datamodule with a toy factory; `tests/battery` runs them all.

A new method joins by one `Entry` in its room's file of `tests/entries`: `tests/test_matrix.py` fails until it has one.
"""

from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import LightningDataModule

from tests.entries import (
    data_manipulation,
    datamodules,
    differential_privacy,
    federated,
    image_text,
    semi_supervised,
    softmax_approximation,
)
from tests.entries.toys import Entry

ENTRIES = (
    *differential_privacy.ENTRIES,
    *softmax_approximation.ENTRIES,
    *data_manipulation.ENTRIES,
    *image_text.ENTRIES,
    *semi_supervised.ENTRIES,
    *federated.ENTRIES,
)
DATAMODULES: dict[str, Callable[[Path], LightningDataModule]] = {
    **datamodules.DATAMODULES,
    **softmax_approximation.DATAMODULES,
    **semi_supervised.DATAMODULES,
    **image_text.DATAMODULES,
}

# Datamodules that hold clients instead of batches.
FEDERATIONS = federated.FEDERATIONS

# Datamodules whose batches no classifier takes, each with the reason.
OWN_BATCHES = image_text.OWN_BATCHES | semi_supervised.OWN_BATCHES


def entry(name: str) -> Entry:
    """The entry of a public name."""
    return next(entry for entry in ENTRIES if entry.id == name)
