"""Each datamodule feeds every loop, also as a copy, and gives the same batches again."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from lit_methods import Classifier
from lit_methods.backbones import MLP
from tests.battery.state import plain
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Parts
from tests.matrix import DATAMODULES, OWN_BATCHES

LOOPS = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
per_datamodule = pytest.mark.parametrize("name", DATAMODULES)
pytestmark = pytest.mark.filterwarnings("ignore:You have overridden")  # hooks that only some loops call


class _WordCounts(nn.Module):
    """Counts of the first ten token ids, so that a classifier of vectors takes texts."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return (input_ids.unsqueeze(-1) == torch.arange(10)).sum(dim=1).float()


class _FromDicts(Classifier):
    """A classifier of the batches that text datamodules give."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch["input_ids"], batch.get("label", batch["input_ids"][:, 0] % 2)


def _module(batch: Any) -> Classifier:
    if isinstance(batch, dict):
        return _FromDicts(nn.Sequential(_WordCounts(), MLP(10, [], 10)), 10)
    images, labels = batch
    assert images.shape[0] == labels.shape[0]
    return Classifier(MLP(images[0].numel(), [], 10), 10)


def _batch(data: LightningDataModule, stage: str) -> Any:
    torch.manual_seed(3)
    data.prepare_data()
    data.setup(stage)
    loaders = getattr(data, f"{LOOPS[stage]}_dataloader")()
    return [next(iter(loader)) for loader in loaders] if isinstance(loaders, list) else next(iter(loaders))


@per_datamodule
@pytest.mark.parametrize("stage", LOOPS)
def test_feeds_the_loop_of_a_classifier(name: str, stage: str, tmp_path: Path) -> None:
    if name in OWN_BATCHES:
        pytest.skip(OWN_BATCHES[name])
    data = DATAMODULES[name](tmp_path)
    module = _module(_batch(DATAMODULES[name](tmp_path), "fit"))
    trainer = toy_trainer(Parts(module, [], data), tmp_path, fast_dev_run=True)
    getattr(trainer, stage)(module, datamodule=data)
    assert trainer.state.finished


@per_datamodule
@pytest.mark.parametrize("stage", LOOPS)
def test_copies_give_the_same_batches(name: str, stage: str, tmp_path: Path) -> None:
    data = DATAMODULES[name](tmp_path)
    copies = [copy.deepcopy(data), pickle.loads(pickle.dumps(data))]  # noqa: S301  our own bytes
    expected = _batch(data, stage)
    copies += [copy.deepcopy(data), pickle.loads(pickle.dumps(data))]  # noqa: S301  its own bytes
    for other in copies:
        assert plain(_batch(other, stage)) == plain(expected)
