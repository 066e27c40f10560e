"""What is saved, pickled or copied gives the same predictions elsewhere."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.battery.state import plain
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Entry
from tests.matrix import ENTRIES

ROOT = Path(__file__).parents[2]
PREDICTING = [entry for entry in ENTRIES if "predicts" not in entry.skips]


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """Predictions by name: of the trained module, and of its checkpoint in one fresh process for all."""
    folder, here = tmp_path_factory.mktemp("checkpoints"), {}
    for entry in PREDICTING:
        parts = entry.make(folder, 1)
        trainer = toy_trainer(parts, folder, max_epochs=1)
        trainer.fit(parts.module, datamodule=parts.data)
        trainer.save_checkpoint(folder / f"{entry.id}.ckpt")
        here[entry.id] = plain(trainer.predict(parts.module, datamodule=parts.data))
        assert here[entry.id] != plain(trainer.predict(entry.make(folder, 1).module, datamodule=parts.data))
    command = [sys.executable, "-m", "tests.battery.fresh", str(folder), *here]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    there = json.loads((folder / "predictions.json").read_text())
    return {name: (here[name], there[name]) for name in here}


@pytest.mark.parametrize("entry", PREDICTING, ids=lambda entry: entry.id)
def test_checkpoint_predicts_the_same_in_a_fresh_process(entry: Entry, predictions: dict[str, tuple[Any, Any]]) -> None:
    here, there = predictions[entry.id]
    assert there == here


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_checkpoint_holds_tensors_and_plain_containers(entry: Entry, tmp_path: Path) -> None:
    parts = entry.make(tmp_path, 1)
    trainer = toy_trainer(parts, tmp_path, max_epochs=1)
    trainer.fit(parts.module, datamodule=parts.data)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    checkpoint = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    states = [callback.state_dict() for callback in parts.callbacks]
    assert plain(list(checkpoint["callbacks"].values())) == plain([state for state in states if state])


def _through_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))  # noqa: S301  our own bytes


@pytest.mark.parametrize("way", [copy.deepcopy, _through_pickle], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_copies_train_like_the_original(entry: Entry, way: Any, tmp_path: Path) -> None:
    results = []
    for of_copies in (False, True):
        parts = entry.make(tmp_path, 1)
        if of_copies:
            parts = parts._replace(module=way(parts.module), callbacks=way(parts.callbacks))
        toy_trainer(parts, tmp_path, max_epochs=1).fit(parts.module, datamodule=parts.data)
        results.append(plain([parts.module.state_dict(), [callback.state_dict() for callback in parts.callbacks]]))
    assert results[1] == results[0]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_deepcopy_after_fit_is_independent(entry: Entry, tmp_path: Path) -> None:
    parts = entry.make(tmp_path, 1)
    toy_trainer(parts, tmp_path, max_epochs=1).fit(parts.module, datamodule=parts.data)
    twin = copy.deepcopy(parts.module)
    assert plain(twin.state_dict()) == plain(parts.module.state_dict())
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    assert plain(twin.state_dict()) != plain(parts.module.state_dict())
