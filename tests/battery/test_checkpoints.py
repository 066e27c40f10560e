"""What is saved, pickled or copied gives the same predictions elsewhere."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Trainer

from lit_methods.checkpoint import CheckpointError, check_module, misfit, read_checkpoint
from tests.battery.state import plain
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Entry, Parts
from tests.matrix import ENTRIES

ROOT = Path(__file__).parents[2]
PREDICTING = [entry for entry in ENTRIES if "predicts" not in entry.skips]


class Saved(NamedTuple):
    """A run of one epoch, and what it saved."""

    path: Path
    parts: Parts
    trainer: Trainer
    states: list[Any]
    shapes: frozenset[tuple[str, torch.Size | None]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """One fit of each entry."""
    folder, runs = tmp_path_factory.mktemp("checkpoints"), {}
    for entry in ENTRIES:
        parts = entry.make(folder, 1)
        trainer = toy_trainer(parts, folder, max_epochs=1)
        trainer.fit(parts.module, datamodule=parts.data)
        path = folder / f"{entry.id}.ckpt"
        trainer.save_checkpoint(path)
        states = plain([callback.state_dict() for callback in parts.callbacks])
        state = parts.module.state_dict()
        shapes = frozenset((name, getattr(part, "shape", None)) for name, part in state.items())
        runs[entry.id] = Saved(path, parts, trainer, states, shapes)
    return runs


@pytest.fixture(scope="module")
def predictions(saved: dict[str, Saved]) -> dict[str, tuple[Any, Any]]:
    """Predictions by name: of the trained module, and of its checkpoint in one fresh process for all."""
    here = {}
    for entry in PREDICTING:
        run = saved[entry.id]
        folder, parts, trainer = run.path.parent, run.parts, run.trainer
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
def test_checkpoint_holds_tensors_and_plain_containers(entry: Entry, saved: dict[str, Saved]) -> None:
    run = saved[entry.id]
    checkpoint = torch.load(run.path, weights_only=True)
    assert plain(list(checkpoint["callbacks"].values())) == [state for state in run.states if state]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_broken_checkpoint_is_refused(entry: Entry, saved: dict[str, Saved], tmp_path: Path) -> None:
    content = saved[entry.id].path.read_bytes()
    for broken in (content[: len(content) // 2], content[:-100], b""):
        (tmp_path / "broken.ckpt").write_bytes(broken)
        with pytest.raises(
            CheckpointError, match=r"broken\.ckpt can't be read: it is cut off, damaged or no checkpoint"
        ):
            read_checkpoint(tmp_path / "broken.ckpt")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_checkpoint_of_another_module_is_refused(entry: Entry, saved: dict[str, Saved], tmp_path: Path) -> None:
    others = {run.shapes: run.path for run in saved.values()}
    del others[saved[entry.id].shapes]
    assert len(others) > 5
    parts = entry.make(tmp_path, 1)
    for path in others.values():
        with pytest.raises(ValueError, match=r"is of another module|does not fit this module|not saved by a"):
            _go_on(path, parts, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    _go_on(saved[entry.id].path, parts, tmp_path / "run")


def _go_on(path: Path, parts: Parts, folder: Path) -> None:
    """What the command line does with a checkpoint."""
    check_module(path, read_checkpoint(path), parts.module.state_dict(), type(parts.module).__name__)
    trainer = toy_trainer(parts, folder, max_epochs=1)
    try:
        trainer.fit(parts.module, datamodule=parts.data, ckpt_path=path, weights_only=True)
    except Exception as error:
        raise misfit(path, error) or error from None


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
